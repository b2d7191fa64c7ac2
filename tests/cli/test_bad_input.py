"""What goes wrong on a user's machine, through the console script: one sentence, the right exit code, no traceback."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PhotoFolder, write_photos
from PIL import Image
from tiny_bundle import edit_manifest

from edgetl import __main__, rundir
from edgetl.errors import EdgetlError
from edgetl.train import checkpoint, setting
from edgetl.train.loader import Batch
from edgetl.train.loop import BEST, Score
from edgetl.train.task import ClassifierTask

pytestmark = pytest.mark.usefixtures("written_once")
SPLITS = ("train", "val", "test")
MODEL = ("--teacher", "timm/test_resnet", "--no-pretrained", "--image-size", "32")
QUICK = ("--epochs", "1", "--batch-size", "8", "--threads", "1", "--workers", "0")


@dataclass(frozen=True)
class Said:
    """What a call of the console script left behind."""

    code: int
    out: str
    err: str

    def refused(self, *expected: str, code: int = 1) -> None:
        """Checks that it is one error, in whose sentence or hint all of `expected` stand, and nothing else."""
        errors = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.code, self.out, len(errors)) == (code, "", 1), self.err
        assert "Traceback" not in self.err
        told = self.err[self.err.index("error: ") :]
        for words in expected:
            assert words in told


Call = Callable[..., Said]


@pytest.fixture
def edgetl(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """`edgetl("predict", bundle, photo)` in this process and an empty folder, as the console script would."""
    monkeypatch.chdir(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def call(*words: str | Path) -> Said:
        monkeypatch.setattr(sys, "argv", ["edgetl", *map(str, words)])
        capfd.readouterr()
        try:
            code = __main__.main()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)  # `room` is for the call, not for pytest
        return Said(code, *capfd.readouterr())

    return call


def finetune(edgetl: Call, data: str | Path, *more: str | Path) -> Said:
    return edgetl("finetune", "--data", data, *MODEL, *QUICK, "--out", "run", *more)


def left(folder: Path = Path()) -> list[str]:
    """What is in a folder, hidden files included, less the photos."""
    return sorted(path.name for path in folder.iterdir() if path.name != "photos")


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, a RUN trained on them and its bundle, made by the console script; not to be written to."""
    root = tmp_path_factory.mktemp("kitchen")
    write_photos(root / "photos", classes=2, images=8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGETL_CACHE", str(root / "cache"))
        for words in (
            ["finetune", "--data", str(root / "photos"), *MODEL, *QUICK, "--out", str(root / "run")],
            ["export", str(root / "run"), "--out", str(root / "bundle"), "--precision", "fp32", "--threads", "1"],
        ):
            patch.setattr(sys, "argv", ["edgetl", *words])
            assert __main__.main() == 0
    recipe = '[finetune]\nteacher = "timm/test_resnet"\npretrained = false\n'
    (root / "recipe.toml").write_text(f'data = "{root / "photos"}"\n{recipe}')
    return root


@pytest.fixture
def bundle(kitchen: Path, tmp_path: Path) -> Path:
    """A bundle of one's own."""
    return shutil.copytree(kitchen / "bundle", tmp_path / "bundle")


# --- photos ---------------------------------------------------------------------------------------------------------


def empty_class(photos: Path) -> None:
    (photos / "coral").mkdir()


def one_class(photos: Path) -> None:
    shutil.rmtree(photos / "beryl")


def text_named_jpg(photos: Path) -> None:
    (photos / "amber/notes.jpg").write_text("Monday: two amber ones\n")


def truncated(photos: Path) -> None:
    path = photos / "amber/001.jpg"
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (empty_class, ("The class folder photos/coral holds no images.",)),
        (one_class, ("photos has one class only ('amber'); a classifier needs at least two.",)),
        (text_named_jpg, ("amber/notes.jpg is not an image: it begins with b'Monday: two ",)),
        (truncated, ("amber/001.jpg cannot be read as an image: ", "truncated", "Remove or ")),
    ],
)
def test_photos_that_cannot_be_used(
    edgetl: Call, photo_folder: PhotoFolder, spoil: Callable[[Path], None], expected: tuple[str, ...]
) -> None:
    spoil(photo_folder(classes=2, images=8))
    finetune(edgetl, "photos").refused(*expected)
    assert left() == []


@pytest.mark.parametrize("split", SPLITS)
def test_a_broken_photo_is_named_before_the_training_whatever_its_split(
    edgetl: Call, photo_folder: PhotoFolder, split: str
) -> None:
    photos = photo_folder(classes=2, images=4, splits=SPLITS)
    text_named_jpg(photos / split)
    said = finetune(edgetl, "photos")
    said.refused(f"{split}/amber/notes.jpg is not an image", "Remove or ")
    assert "epoch" not in said.err
    assert left() == []


def odd_photos(folder: Path) -> list[str]:
    """One photo of every kind that is unusual and nevertheless fine; returns their names."""
    rows, columns = np.mgrid[0:40, 0:56]
    pixels = np.stack([rows * 6, columns * 4, rows + columns], axis=2).astype(np.uint8)
    photo = Image.fromarray(pixels)
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: show it turned by 90 degrees
    clear = Image.fromarray(np.dstack([pixels, (columns * 4).astype(np.uint8)]))
    photo.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray((rows * 1600).astype(np.uint16)).save(folder / "sixteen.png")
    Image.fromarray((rows * 1600).astype(np.uint16)).save(folder / "sixteen.tif")
    photo.quantize(16).save(folder / "palette.png")
    photo.quantize(16).save(folder / "palette_with_a_clear_colour.png", transparency=3)
    clear.save(folder / "alpha.png")
    clear.convert("LA").save(folder / "gray_alpha.png")
    photo.convert("L").save(folder / "gray.jpg")
    photo.convert("1").save(folder / "one_bit.png")
    photo.save(folder / "rotated.png", exif=turned)
    photo.save(folder / "sideways.png")
    photo.transpose(Image.Transpose.ROTATE_270).save(folder / "upright.png")
    photo.resize((1, 1)).save(folder / "one_pixel.png")
    photo.resize((1, 1)).save(folder / "one_pixel.jpg")
    return sorted(path.name for path in folder.iterdir())


def test_odd_photos_are_trained_on_and_evaluated(edgetl: Call, photo_folder: PhotoFolder) -> None:
    photos = photo_folder(classes=2, images=2, splits=SPLITS)
    for split in SPLITS:
        kinds = len(odd_photos(photos / split / "amber"))
    said = finetune(edgetl, "photos", "--json")
    assert (said.code, "Traceback" in said.err) == (0, False), said.err
    metrics = json.loads(said.out)["metrics"]
    assert {name: found["n"] for name, found in metrics.items() if name in SPLITS} == {
        "val": kinds + 2,
        "test": kinds + 2,
    }


def test_odd_photos_are_answered(edgetl: Call, kitchen: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    kinds = odd_photos(tmp_path / "photos")
    said = edgetl("predict", kitchen / "bundle", "photos", "--json")
    assert (said.code, said.err) == (0, "")
    answers = {Path(one["path"]).name: one["score"] for one in json.loads(said.out)["predictions"]}
    assert list(answers) == kinds
    assert answers["rotated.png"] == answers["upright.png"] != answers["sideways.png"]
    assert answers["sixteen.png"] == answers["sixteen.tif"]


def test_copies_across_splits_are_told_and_with_strict_splits_refused(edgetl: Call, photo_folder: PhotoFolder) -> None:
    photos = photo_folder(classes=2, images=4, splits=SPLITS)
    shutil.copy(photos / "train/amber/001.jpg", photos / "test/amber/copy.jpg")
    finetune(edgetl, "photos", "--strict-splits").refused("1 image(s) occur in more than one", "test/amber/copy.jpg")
    assert left() == []
    said = finetune(edgetl, "photos")
    assert (said.code, left()) == (0, ["run"])
    assert "data: warning: 1 image(s) occur in more than one of the data's own splits" in said.err


# --- words ----------------------------------------------------------------------------------------------------------


def test_an_unknown_target_suggests_the_nearest(edgetl: Call, kitchen: Path) -> None:
    said = edgetl("export", kitchen / "run", "--out", "bundle", "--target", "x86-vni")
    said.refused("There is no target named 'x86-vni'. Did you mean 'x86-vnni'?", "hint: Choices: ")
    assert left() == []


def test_a_bundle_that_exists_is_refused_before_the_work(edgetl: Call, kitchen: Path, bundle: Path) -> None:
    before = {path.name: path.read_bytes() for path in bundle.iterdir()}
    edgetl("export", kitchen / "run", "--out", "bundle").refused("bundle exists already.", "--overwrite")
    assert {path.name: path.read_bytes() for path in bundle.iterdir()} == before


@pytest.mark.parametrize("verb", ["finetune", "export"])
def test_an_output_folder_that_is_a_file_is_refused(edgetl: Call, kitchen: Path, verb: str) -> None:
    Path("run").write_text("not a folder")
    if verb == "finetune":
        said = finetune(edgetl, kitchen / "photos", "--overwrite")
    else:
        said = edgetl("export", kitchen / "run", "--out", "run", "--overwrite")
    said.refused("run is a file; --out names a folder.")
    assert Path("run").read_text() == "not a folder"


VERBS = ("finetune", "distill", "export", "bench", "run", "demo")


def writing(verb: str, kitchen: Path) -> list[str | Path]:
    """What makes a verb write to --out."""
    words: dict[str, list[str | Path]] = {
        "finetune": ["--data", kitchen / "photos", *MODEL],
        "distill": ["--data", kitchen / "photos", "--teacher", kitchen / "run"],
        "export": [kitchen / "run"],
        "bench": [kitchen / "bundle", "--backend", "cpu"],
        "run": [kitchen / "recipe.toml"],
        "demo": [],
    }
    return [verb, *words[verb]]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("out", "expected"),
    [
        ("photo.jpg/deep/out", "photo.jpg is a file."),
        ("photo.jpg", "photo.jpg is a file"),
        ("x" * 300, "File name too long."),
        ("x" * 250, "File name too long"),  # which fits, but not while it is being written
        ("deep/" + "ü" * 140 + "/out", "File name too long"),
        (".", "--out is '.', expected a folder with a name of its own."),
        ("", "--out is '.', expected a folder with a name of its own."),
        ("deep/..", "--out is 'deep/..', expected a folder with a name of its own."),
        ("/", "--out is '/', expected a folder with a name of its own."),
        ("/proc/edgetl/out", "/proc/edgetl/out cannot be "),
    ],
    ids=lambda value: value[:12] or "empty",
)
def test_an_output_folder_that_cannot_be_made_is_refused_before_the_work(
    edgetl: Call, kitchen: Path, verb: str, out: str, expected: str
) -> None:
    Path("photo.jpg").touch()
    said = edgetl(*writing(verb, kitchen), "--out", out)
    said.refused(expected, "--out")
    assert said.err.startswith("error: ")  # nothing was begun
    assert left() == ["photo.jpg"]
    if verb in ("finetune", "distill", "run"):
        edgetl(*writing(verb, kitchen), "--out", out, "--resume").refused(expected, "--out")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_folder_that_edgetl_did_not_write_is_never_replaced(
    edgetl: Call, kitchen: Path, verb: str, flag: str
) -> None:
    if flag == "--resume" and verb in ("export", "bench", "demo"):
        pytest.skip("the command has no such flag")
    Path("holidays").mkdir()
    Path("holidays/beach.jpg").write_bytes(b"the only copy")
    said = edgetl(*writing(verb, kitchen), "--out", "holidays", flag)
    said.refused("holidays exists already and is nothing that edgetl wrote: it holds 'beach.jpg'.", "another --out")
    assert said.err.startswith("error: ")
    assert [left(), left(Path("holidays"))] == [["holidays"], ["beach.jpg"]]


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_a_run_finds_foreign_stage_folders_before_the_work(edgetl: Call, kitchen: Path, flag: str) -> None:
    Path("out/report").mkdir(parents=True)
    Path("out/stages.json").write_text('{"schema": 1, "stages": {}}')
    Path("out/report/thesis.tex").write_text("the only copy")
    said = edgetl(*writing("run", kitchen), "--out", "out", flag)
    said.refused("out/report exists already and is nothing that edgetl wrote: it holds 'thesis.tex'.")
    Path("out/report/thesis.tex").rename("out/report/report.json")
    if flag == "--resume":  # with --overwrite it may go
        said = edgetl(*writing("run", kitchen), "--out", "out", flag)
        said.refused("out/report exists already, and was not made by a run into out.", "move that folder away")
    assert left(Path("out")) == ["report", "stages.json"]


def test_a_place_where_a_disk_is_mounted_is_filled_but_not_replaced(
    edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("volume").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "volume")
    for verb in ("finetune", "export", "bench"):
        said = edgetl(*writing(verb, kitchen), "--out", "volume", "--overwrite")
        said.refused("volume is where a disk is mounted, which cannot be replaced.", "--out volume/run")
    rundir.require_place(Path("volume"), whole=False)
    assert left(Path("volume")) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_parent_that_is_read_only_is_told_before_the_work(
    edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    Path("shelf").mkdir()
    access = os.access  # a superuser may write anywhere, so the system's answer is made up
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shelf" and access(path, mode))
    said = edgetl(*writing(verb, kitchen), "--out", "shelf/out")
    said.refused("shelf/out cannot be written: ", "shelf is read-only.", "Choose a folder you may write to with --out.")
    assert left(Path("shelf")) == []


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "{long}", "p.jpg"],
        ["export", "{long}", "--out", "b"],
        ["verify", "{long}"],
        ["run", "{long}", "--out", "b"],
        ["bench", "{long}", "--out", "b"],
        ["init", "{long}"],
        ["inspect", "{long}"],
        ["finetune", "--data", "{long}", *MODEL, "--out", "b"],
    ],
    ids=lambda words: words[0],
)
def test_a_name_that_is_too_long_for_any_file_is_one_sentence(edgetl: Call, words: list[str]) -> None:
    edgetl(*(word.format(long="x" * 300) for word in words)).refused("xxx")
    assert left() == []


@pytest.mark.parametrize(
    ("words", "expected", "code"),
    [
        (["--seed", str(2**64)], "--seed: found 18446744073709551616, expected at most 4294967295", 2),
        (["--threads", "100000"], "--threads: found 100000, expected at most 1024", 2),
        (["--workers", "100000"], "--workers: found 100000, expected at most 1024", 2),
        (["--weights", "photos"], "The file of weights photos is a folder.", 1),
        (["--teacher", ""], "The name of the model is empty.", 1),
        (["--data", "phots"], "nor the name of a data set. Did you mean 'photos'?", 1),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_values_that_cannot_be_meant(edgetl: Call, words: list[str], expected: str, code: int) -> None:
    Path("photos").mkdir()
    edgetl("finetune", "--data", "photos", *MODEL, "--out", "run", *words).refused(expected, code=code)
    assert left() == []


def test_more_threads_than_any_library_can_start_are_refused(edgetl: Call, kitchen: Path) -> None:
    said = edgetl("bench", kitchen / "bundle", "--out", "report", "--threads", "1,100000")
    said.refused("--threads: found '100000', expected whole numbers up to 1024", code=2)
    edgetl("predict", kitchen / "bundle", "x.jpg", "--threads", "100000").refused("--threads", code=2)
    edgetl("verify", kitchen / "bundle", "--threads", "100000").refused("--threads", code=2)


def test_a_loss_that_weighs_nothing_is_refused(edgetl: Call, kitchen: Path) -> None:
    words = ("distill", "--data", kitchen / "photos", "--teacher", kitchen / "run", "--out", "student")
    said = edgetl(*words, "--loss", "kd:0,labels:0")
    said.refused("--loss gives every term the weight 0, so nothing would be learned.", "hint: For example --loss ")
    assert left() == []


def test_a_student_that_cannot_be_had_names_one_that_can(edgetl: Call, kitchen: Path) -> None:
    words = ("distill", "--data", kitchen / "photos", "--teacher", kitchen / "run", "--out", "student", *QUICK)
    said = edgetl(*words, "--student", "slim:0.001", "--importance", "magnitude")
    said.refused("cannot be cut to 0.1 % of its parameters: the nearest possible is 0.4", "Use slim:0.00")
    named = said.err.rpartition("Use ")[2].split()[0]
    assert edgetl(*words, "--student", named, "--importance", "magnitude").code == 0


@pytest.mark.parametrize("wrong", ["data=nosuch", "finetune.val_fraction=0", "finetune.batch_size=1"])
def test_a_recipe_that_fails_before_anything_is_made_leaves_nothing(edgetl: Call, kitchen: Path, wrong: str) -> None:
    said = edgetl("run", kitchen / "recipe.toml", "--out", "out", "--set", wrong, "--set", "image_size=32")
    assert (said.code, left()) == (1, []), said.err


def test_the_character_nul_is_refused_wherever_a_text_is_given(kitchen: Path, tmp_path: Path) -> None:
    import edgetl as api

    with pytest.raises(EdgetlError, match=r"'out': found 'a\\x00b', expected a text without the character NUL"):
        api.export(run=str(kitchen / "run"), out="a\0b")
    with pytest.raises(EdgetlError, match=r"'cases': found .* expected texts without the character NUL"):
        api.bench(cases=["a\0b"], out="report")
    with pytest.raises(EdgetlError, match="expected a folder with a name of its own"):
        api.run(kitchen / "recipe.toml", out=str(tmp_path / "a\0b"))


# --- the disk -------------------------------------------------------------------------------------------------------


def room(size_bytes: int) -> None:
    """Lets the system refuse to make any file longer, as a full disk would, until the next call has ended."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def test_no_room_for_the_decoded_photos(edgetl: Call, kitchen: Path, own_home: Path) -> None:
    room(6000)  # enough for the recipe and the split
    finetune(edgetl, kitchen / "photos").refused(
        "cache/edgetl/images",
        " could not be written: File too large. EDGETL_CACHE=FOLDER names another place for prepared images.",
        "Make room, then continue with: edgetl finetune ",
    )
    assert left() == []
    assert left(own_home / "cache/edgetl/images") == []


@pytest.mark.parametrize("place", ["/proc/cache", "photo.jpg/cache"])
def test_a_cache_that_cannot_be_written_names_its_variable(
    edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    Path("photo.jpg").touch()
    monkeypatch.setenv("EDGETL_CACHE", place)
    said = finetune(edgetl, kitchen / "photos")
    said.refused(place, "cannot be written: ", "hint: EDGETL_CACHE=FOLDER names another place for prepared images.")
    assert "--out" not in said.err
    assert left() == ["photo.jpg"]


def test_prepared_images_that_are_damaged_are_prepared_again(edgetl: Call, kitchen: Path, own_home: Path) -> None:
    assert finetune(edgetl, kitchen / "photos", "--out", "whole").code == 0
    cache = own_home / "cache/edgetl/images"
    for file in [*cache.glob("*/index.npz"), *cache.glob("*.bin")]:
        file.write_bytes(b"")  # as a power cut may leave it
    said = finetune(edgetl, kitchen / "photos")
    assert (said.code, "is damaged; the images are prepared again" in said.err) == (0, True)
    for file in cache.glob("*/pixels.bin"):
        file.write_bytes(file.read_bytes()[:-1])
    assert finetune(edgetl, kitchen / "photos", "--out", "again").code == 0
    assert len({Path(run, rundir.MODEL).read_bytes() for run in ("whole", "run", "again")}) == 1


def test_no_room_for_the_first_checkpoint(edgetl: Call, kitchen: Path) -> None:
    room(100_000)
    finetune(edgetl, kitchen / "photos").refused(".run.partial/", " could not be written: File too large.", "Make room")
    assert left() == []


def test_a_training_whose_disk_fills_up_can_be_resumed(
    edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = finetune(edgetl, kitchen / "photos", "--epochs", "3", "--out", "whole")
    assert whole.code == 0
    write = checkpoint.write

    def last_write(path: Path, state: checkpoint.State) -> None:
        write(path, state)
        if path.name == rundir.CHECKPOINT:
            room(100_000)

    monkeypatch.setattr(checkpoint, "write", last_write)
    finetune(edgetl, kitchen / "photos", "--epochs", "3").refused(
        "could not be written: File too large. The last checkpoint is kept in .run.partial.", " --resume"
    )
    monkeypatch.setattr(checkpoint, "write", write)
    assert left() == [".run.partial", "whole"]
    assert (Path(".run.partial") / rundir.CHECKPOINT).is_file()
    assert not list(Path(".run.partial").glob(".*"))
    assert finetune(edgetl, kitchen / "photos", "--epochs", "3", "--resume").code == 0
    assert left() == ["run", "whole"]
    assert Path("run", rundir.MODEL).read_bytes() == Path("whole", rundir.MODEL).read_bytes()


def test_no_room_for_the_bundle(edgetl: Call, kitchen: Path) -> None:
    room(100_000)
    said = edgetl("export", kitchen / "run", "--out", "bundle", "--precision", "fp32", "--threads", "1")
    said.refused(
        "bundle.partial/fp32.onnx could not be written: File too large.", "Make room, then run the same command"
    )
    assert "--resume" not in said.err  # which export does not have
    assert left() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_no_room_for_the_answers() -> None:
    with Path("/dev/full").open("w") as full:
        words = [sys.executable, "-m", "edgetl", "list", "strategies"]
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    Said(done.returncode, "", done.stderr).refused("could not be written: No space left on device.")


def test_no_room_on_any_disk(edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)  # to be looked for again
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["nowhere"])
        said = edgetl("bench", kitchen / "bundle", "--backend", "cpu", "--out", "report")
    said.refused("could not be written: No usable temporary directory found in ", "Make room")
    assert left() == []


def test_no_room_for_the_report(edgetl: Call, kitchen: Path) -> None:
    words = ("bench", kitchen / "bundle", "--backend", "cpu", "--rounds", "1", "--block", "50", "--starts", "1")
    room(500)
    said = edgetl(*words, "--out", "report")
    said.refused(".report.partial/report.json could not be written: File too large.", "Make room, then run the same")
    assert "--resume" not in said.err
    assert left() == []
    room(12_000)
    said = edgetl(*words, "--out", "report")
    said.refused(
        "report/report.html could not be written: File too large.", "kept in report/report.json", "--overwrite"
    )
    assert len(json.loads(Path("report/report.json").read_text())["rows"]) == 1


# --- bundles and checkpoints that are not what they were -------------------------------------------------------------


def flip(path: Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def from_the_future(bundle: Path) -> None:
    edit_manifest(bundle, "schema", value=99)


def leaving(bundle: Path) -> None:
    edit_manifest(bundle, "variants", 0, "file", value="../fp32.onnx")


def leaving_by_a_link(bundle: Path) -> None:
    (bundle / "fp32.onnx").rename(bundle.parent / "fp32.onnx")
    (bundle / "fp32.onnx").symlink_to("../fp32.onnx")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda bundle: flip(bundle / "fp32.onnx"), "bundle/fp32.onnx was altered: its SHA-256 is not the manifest's."),
        (from_the_future, "schema 99"),
        (leaving, "../fp32.onnx"),
        (leaving_by_a_link, "bundle/fp32.onnx is a link that leaves the bundle"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "verify", "bench"])
def test_a_bundle_that_cannot_be_trusted_is_refused(
    edgetl: Call, kitchen: Path, bundle: Path, verb: str, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(bundle)
    more = {"predict": [kitchen / "photos"], "verify": [], "bench": ["--out", "report", "--backend", "cpu"]}
    edgetl(verb, "bundle", *more[verb]).refused(expected)
    assert left() == [name for name in ["bundle", "fp32.onnx"] if Path(name).exists()]


def test_a_flipped_byte_in_the_golden_photos(edgetl: Call, bundle: Path) -> None:
    flip(bundle / "golden.npz")
    edgetl("verify", "bundle").refused("bundle/golden.npz was altered")


class Trap:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


@pytest.fixture
def hostile() -> bytes:
    return pickle.dumps(Trap())


def test_a_checkpoint_that_is_a_pickle_is_never_loaded(edgetl: Call, kitchen: Path, hostile: bytes) -> None:
    Path(".run.partial").mkdir()
    Path(".run.partial", rundir.CHECKPOINT).write_bytes(hostile)
    finetune(edgetl, kitchen / "photos", "--resume").refused(
        f".run.partial/{rundir.CHECKPOINT} is a pickle, which edgetl never loads", "--overwrite"
    )
    assert left() == [".run.partial"]


def test_a_model_that_is_a_pickle_is_never_loaded(edgetl: Call, kitchen: Path, hostile: bytes) -> None:
    shutil.copytree(kitchen / "run", "run")
    Path("run", rundir.MODEL).write_bytes(hostile)
    says = f"run/{rundir.MODEL} is a pickle, which edgetl never loads"
    edgetl("export", "run", "--out", "bundle").refused(says)
    edgetl("distill", "--data", kitchen / "photos", "--teacher", "run", "--out", "student").refused(says)
    assert left() == ["run"]
    edgetl("bench", "run", "--backend", "torch", "--out", "report").refused("is a pickle, which edgetl never loads")
    assert left() == ["report", "run"]


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_weights_that_are_more_than_tensors_are_never_loaded(
    edgetl: Call, kitchen: Path, hostile: bytes, name: str
) -> None:
    Path(name).write_bytes(hostile)
    finetune(edgetl, kitchen / "photos", "--weights", name).refused(name)
    assert left() == [name]


# --- a training that goes wrong --------------------------------------------------------------------------------------

DIVERGING = ("--lr", "1000", "--clip-norm", "0")


def test_a_loss_that_is_not_a_number_stops_the_training(edgetl: Call, kitchen: Path) -> None:
    at_once = ("--weight-decay", "1000", "--warmup-epochs", "0", "--batch-size", "2")
    said = finetune(edgetl, kitchen / "photos", *DIVERGING, *at_once)
    said.refused("The loss is nan in epoch 1, step ", "no checkpoint was written yet", "lower --lr or a --clip-norm")
    assert left() == []


def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_a_number(edgetl: Call, kitchen: Path) -> None:
    slowly = ("--weight-decay", "5", "--batch-size", "32", "--epochs", "60", "--warmup-epochs", "40")
    said = finetune(edgetl, kitchen / "photos", *DIVERGING, *slowly, "--checkpoint-minutes", "0")
    said.refused("loss is nan", "epoch ", "the last good checkpoint is kept in .run.partial")
    rows = [json.loads(line) for line in Path(".run.partial", rundir.METRICS).read_text().splitlines()]
    assert rows and all(np.isfinite([row["loss"], row["val_loss"]]).all() for row in rows)
    for name in (rundir.CHECKPOINT, BEST):
        tensors = checkpoint.read(Path(".run.partial", name)).part("model")
        assert all(tensor.isfinite().all() for tensor in tensors.values())
    said.refused("--overwrite (or another --out) and a lower --lr", "--resume would only repeat the same steps.")
    way_on = f"--weights .run.partial/{BEST} --out ANOTHER starts from them."
    said.refused(way_on)
    other = finetune(edgetl, kitchen / "photos", *DIVERGING, *slowly, "--lr", "0.001", "--resume")
    other.refused("lr was 1000.0 and is 0.001.", "--resume goes on with the very same training only", way_on)
    again = finetune(edgetl, kitchen / "photos", "--weights", f".run.partial/{BEST}", "--out", "again")
    assert again.code == 0
    assert f"weights from .run.partial/{BEST}\n" in again.err  # all of them


def test_weights_that_break_in_a_step_never_reach_the_checkpoint(
    edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ClassifierTask.forward
    steps = iter(range(1, 100))

    def breaking(self: ClassifierTask, batch: Batch) -> dict[str, torch.Tensor]:
        result = forward(self, batch)
        if next(steps) == 3:  # adds 0 to the loss; its gradient is NaN
            result["loss"] = result["loss"] + (0 * result["logits"].sum()).sqrt()
        return result

    monkeypatch.setattr(ClassifierTask, "forward", breaking)
    said = finetune(edgetl, kitchen / "photos", "--epochs", "4", "--checkpoint-minutes", "0")
    said.refused(" is not finite any more in epoch ", "the last good checkpoint is kept in .run.partial")
    state = checkpoint.read(Path(".run.partial", rundir.CHECKPOINT))
    assert all(tensor.isfinite().all() for tensor in state.part("model").values())


def test_a_student_cut_out_of_its_teacher_is_not_offered_weights(
    edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = ClassifierTask.forward
    steps = iter(range(1, 100))

    def breaking(self: ClassifierTask, batch: Batch) -> dict[str, torch.Tensor]:
        result = forward(self, batch)
        return result if next(steps) < 5 else {**result, "loss": result["loss"] * float("nan")}

    monkeypatch.setattr(ClassifierTask, "forward", breaking)
    cut = ("--student", "slim:0.6", "--importance", "magnitude", "--round-to", "2", *QUICK, "--epochs", "4")
    said = edgetl("distill", "--data", kitchen / "photos", "--teacher", kitchen / "run", *cut, "--out", "run")
    said.refused("the last good checkpoint is kept in .run.partial", "--resume would only repeat the same steps.")
    assert Path(".run.partial", BEST).is_file() and "--weights" not in said.err


def test_steps_of_one_image_are_refused(edgetl: Call, kitchen: Path) -> None:
    said = finetune(edgetl, kitchen / "photos", "--batch-size", "1")
    said.refused("10 training images and --batch-size 1 make a step of one image", "batch norms of timm/test_resnet")
    assert left() == []


@pytest.mark.parametrize("name", ["lr", "weight-decay"])
def test_a_rate_beyond_all_reason_is_refused_at_once(edgetl: Call, kitchen: Path, name: str) -> None:
    said = finetune(edgetl, kitchen / "photos", f"--{name}", "1e38")
    said.refused(f"--{name}: found 1e+38, expected at most 1000", code=2)


AT_EPOCH_2 = """
from edgetl.cli import progress
draw = progress._Lines.__call__
def pressing(lines, event):
    draw(lines, event)
    if event.kind == "epoch" and event.values["epoch"] == 2:
        os.kill(os.getpid(), signal.SIGINT)
progress._Lines.__call__ = pressing
"""
AT_LARGE_PHOTO_3 = """
from edgetl.cli import progress
from edgetl.runtime import preprocess
draw, decode, begun, large = progress._Lines.__call__, preprocess.decode, [], []
def noting(lines, event):
    draw(lines, event)
    begun.append(event.values.get("what"))
def pressing(photo, *how, **more):
    if "decode" in begun and len(photo) > 20_000:
        large.append(1)
        if len(large) == 3:
            os.kill(os.getpid(), signal.SIGINT)
    return decode(photo, *how, **more)
progress._Lines.__call__, preprocess.decode = noting, pressing
"""


def interrupted(words: Sequence[str | Path], moment: str) -> Said:
    """Ctrl-C in a process of its own, at a moment that the process itself knows: who watches it may be too slow."""
    code = f"import os, signal, sys\nfrom edgetl import __main__\n{moment}\nsys.argv[0] = 'edgetl'\n"
    done = subprocess.run([sys.executable, "-c", f"{code}sys.exit(__main__.main())", *map(str, words)],
                          capture_output=True, text=True, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def words_of_the_hint(said: Said) -> list[str]:
    hint = said.err.splitlines()[-1]
    assert hint.startswith("hint: Continue with: edgetl ")
    return shlex.split(hint.removeprefix("hint: Continue with: edgetl "))


def test_ctrl_c_in_training_and_its_hint_finishes(edgetl: Call, kitchen: Path) -> None:
    words = ["finetune", "--data", kitchen / "photos", *MODEL, *QUICK, "--epochs", "40", "--out", "a run"]
    said = interrupted(words, AT_EPOCH_2)
    said.refused("Interrupted.", code=130)
    assert "epoch 2/40" in said.err and "epoch 4/40" not in said.err
    assert left() == [".a run.partial"]
    finished = edgetl(*words_of_the_hint(said))
    assert (finished.code, left()) == (0, ["a run"])
    assert "epoch 2/40" not in finished.err
    assert "epoch 40/40" in finished.err
    assert len(Path("a run", rundir.METRICS).read_text().splitlines()) == 40


def test_ctrl_c_while_photos_are_decoded_leaves_nothing(
    edgetl: Call, photo_folder: PhotoFolder, own_home: Path
) -> None:
    photos = photo_folder(classes=2, images=4, splits=SPLITS)
    large = io.BytesIO()
    Image.new("RGB", (2000, 1500), "teal").save(large, "JPEG")
    for number in range(8):
        (photos / f"train/amber/large{number}.jpg").write_bytes(large.getvalue() + bytes([number]))
    said = interrupted(["finetune", "--data", "photos", *MODEL, *QUICK, "--out", "run"], AT_LARGE_PHOTO_3)
    said.refused("Interrupted.", code=130)
    assert "finetune: decode, " in said.err and "finetune: train" not in said.err
    assert (left(), left(own_home / "cache/edgetl/images")) == ([], [])
    for path in (photos / "train/amber").glob("large*"):
        path.unlink()
    assert edgetl(*words_of_the_hint(said)).code == 0


def test_ctrl_c_in_the_last_moment_of_training_is_heard(
    edgetl: Call, kitchen: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validate = setting.Validation.__call__

    def interrupted_validation(self: setting.Validation, module: torch.nn.Module) -> Score:
        signal.raise_signal(signal.SIGINT)
        return validate(self, module)

    with monkeypatch.context() as patch:
        patch.setattr(setting.Validation, "__call__", interrupted_validation)
        finetune(edgetl, kitchen / "photos").refused("Interrupted.", code=130)
    assert left() == [".run.partial"]
    assert finetune(edgetl, kitchen / "photos", "--resume").code == 0


def test_ctrl_c_within_an_import_is_130_too(tmp_path: Path) -> None:
    # Imports run much through exec(text); after that `python -m` would die of SIGINT although it was caught.
    (tmp_path / "interrupted.py").write_text("""
import sys
from edgetl import __main__, pipeline
pipeline.finetune_with = lambda *_: exec("raise KeyboardInterrupt")
sys.argv = ["edgetl", "finetune", "--data", "photos", "--teacher", "timm/test_resnet", "--out", "run"]
sys.exit(__main__.main())
""")
    where = os.pathsep.join([str(tmp_path), str(Path(rundir.__file__).parents[1])])
    words = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(words, env={**os.environ, "PYTHONPATH": where}, capture_output=True, text=True, check=False)
    Said(done.returncode, done.stdout, done.stderr).refused("Interrupted.", code=130)


def test_ctrl_c_while_the_command_line_is_imported(edgetl: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("importlib.util.find_spec", interrupt)
    edgetl("list", "losses").refused("Interrupted.", code=130)
