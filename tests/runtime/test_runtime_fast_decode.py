"""The fast path: nearly the exact pixels, exactly the same picture; other decoders only where they are installed."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from tiny_bundle import make_bundle

from edgetl.errors import InputError, MissingDependency, UnknownName
from edgetl.runtime import fast_decode, jpeg_decoders, load
from edgetl.runtime.fast_decode import Approximate
from edgetl.runtime.preprocess import Preprocess, decode, prepare_pixels, resize

MODES = {
    "shortest": Preprocess(size_hw=(32, 32)),
    "squash": Preprocess(size_hw=(32, 24), resize_mode="squash"),
    "letterbox": Preprocess(size_hw=(40, 32), resize_mode="letterbox", interpolation="bilinear"),
}


def photo(height: int = 300, width: int = 420) -> Image.Image:
    """Smooth, coloured and without any symmetry, with a hard edge, which is what reducing could displace."""
    rng = np.random.default_rng(5)
    smooth = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height), 3)
    smooth.paste((250, 20, 30), (width // 5, height // 6, width // 2, height // 3))
    return smooth


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def oriented(way: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = way
    return exif


def near(found: np.ndarray, exact: np.ndarray) -> bool:
    apart = np.abs(found.astype(int) - exact.astype(int))
    return found.shape == exact.shape and apart.mean() < 0.7


@pytest.mark.parametrize("way", range(1, 9))
@pytest.mark.parametrize("mode", MODES)
def test_the_same_picture_in_every_orientation(mode, way):
    data = encoded(photo(), quality=95, exif=oriented(way))
    exact, fast = (prepare_pixels(data, MODES[mode], decode=one) for one in ("exact", "fast"))
    assert isinstance(fast, Approximate)
    assert near(fast, exact)
    # The measure is able to see a picture that is mirrored, or moved by a single pixel.
    assert not near(fast[::-1], exact)
    assert not near(np.roll(fast, 1, axis=1), exact)


@pytest.mark.parametrize("height, scale", [(105, 1), (108, 2), (213, 2), (215, 4), (591, 4), (593, 8), (2000, 8)])
def test_how_much_decoding_leaves_to_the_filter(height, scale, monkeypatch):
    """The short side becomes 37 pixels: one and a half times that is left, or twice where an eighth is decoded."""
    asked = []
    draft = JpegImageFile.draft

    def noting(image, mode, size):
        asked.append(size)
        return draft(image, mode, size)

    monkeypatch.setattr(JpegImageFile, "draft", noting)
    prepare_pixels(encoded(photo(height, 2 * height)), MODES["shortest"], decode="fast")
    assert asked == ([] if scale == 1 else [(2 * height // scale, height // scale)])


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_the_same_colours(color):
    wants = Preprocess(size_hw=(32, 32), color=color)
    data = encoded(photo(), quality=95)
    assert near(prepare_pixels(data, wants, decode="fast"), prepare_pixels(data, wants))


@pytest.mark.parametrize(
    "kind, mode", [("PNG", "RGBA"), ("PNG", "P"), ("JPEG", "CMYK"), ("JPEG", "L"), ("TIFF", "RGB"), ("WEBP", "RGB")]
)
def test_other_kinds_are_reduced_too(kind, mode):
    picture = photo()
    if mode == "RGBA":
        picture.putalpha(Image.linear_gradient("L").resize(picture.size))
    data = encoded(picture.convert(mode), kind, exif=oriented(6))
    exact, fast = (prepare_pixels(data, MODES["shortest"], decode=one) for one in ("exact", "fast"))
    assert isinstance(fast, Approximate)
    assert near(fast, exact)


def test_pictures_and_arrays_of_the_caller_are_reduced_and_left_as_they_were(tmp_path):
    path = tmp_path / "photo.jpg"
    photo().save(path)
    opened = Image.open(path)
    size = opened.size
    for source in (opened, np.asarray(photo())):
        fast = prepare_pixels(source, MODES["shortest"], decode="fast")
        assert isinstance(fast, Approximate)
        assert near(fast, prepare_pixels(source, MODES["shortest"]))
    assert opened.size == size


def test_an_approximate_image_can_be_made_exactly():
    data = encoded(photo())
    fast = prepare_pixels(data, MODES["shortest"], decode="fast")
    exact = prepare_pixels(data, MODES["shortest"])
    assert np.array_equal(fast.exactly(), exact)
    assert not np.array_equal(fast, exact)


@pytest.mark.parametrize(
    "height, width, wants",
    [
        (105, 150, Preprocess(size_hw=(32, 32))),  # less than three times the wanted size
        (20, 30, Preprocess(size_hw=(32, 32))),
        (300, 420, Preprocess(size_hw=(32, 32), interpolation="nearest")),
    ],
)
def test_where_nothing_can_be_saved_the_pixels_are_exact(height, width, wants):
    data = encoded(photo(height, width))
    fast = prepare_pixels(data, wants, decode="fast")
    assert not isinstance(fast, Approximate)
    assert np.array_equal(fast, prepare_pixels(data, wants))


def test_damaged_files_are_refused_as_in_the_exact_path():
    data = encoded(photo(600, 800))
    with pytest.raises(InputError, match="truncated"):
        prepare_pixels(data[: len(data) // 2], MODES["shortest"], decode="fast")
    with pytest.raises(InputError, match="800 x 600"):
        prepare_pixels(data, MODES["shortest"], decode="fast", max_megapixels=0.4)


def test_the_lead_of_the_best_logit():
    assert np.allclose(fast_decode.leads(np.array([[0.0, 5.0, 5.5], [9.0, 5.0, 0.0], [3.0, 3.0, 0.0]])), [0.5, 4, 0])
    assert fast_decode.leads(np.zeros((2, 1))).tolist() == [np.inf, np.inf]


@pytest.mark.parametrize("kind, little", [("JPEG", [110, 250, 290]), ("PNG", [110])])
def test_where_less_is_left_more_is_close(kind, little):
    wants = Preprocess(size_hw=(37, 37), crop_fraction=1.0)
    for height in (110, 148, 250, 290, 300, 592):
        fast = prepare_pixels(encoded(photo(height, 2 * height), kind), wants, decode="fast")
        assert fast.close == (fast_decode.CLOSE_OF_LITTLE if height in little else fast_decode.CLOSE), height


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "tiny")


def all_are_close(monkeypatch, difference: float):
    for name in ("CLOSE", "CLOSE_OF_LITTLE"):
        monkeypatch.setattr(fast_decode, name, difference)


def test_close_calls_are_decided_by_the_exact_pixels_and_others_are_not(bundle, monkeypatch):
    sources = [encoded(photo()), encoded(photo(), "PNG"), encoded(photo(20, 30)), encoded(photo(500, 400))]
    with load(bundle, threads=1) as exact, load(bundle, threads=1, decode="fast") as fast:
        expected = exact.logits(sources)
        all_are_close(monkeypatch, 1e9)
        assert np.array_equal(fast.logits(sources), expected)
        assert fast.predict(sources[0]) == exact.predict(sources[0])
        assert fast.predict_batch(sources, batch_size=3) == exact.predict_batch(sources, batch_size=3)
        all_are_close(monkeypatch, -1e9)
        found = fast.logits(sources)
    assert np.abs(found - expected).max() < 0.1
    assert (found[[0, 1, 3]] != expected[[0, 1, 3]]).any(axis=1).all()
    assert np.array_equal(found[2], expected[2])  # too small to be reduced


def test_only_the_close_rows_are_run_again():
    data = encoded(photo())
    reduced, plain = (prepare_pixels(data, MODES["shortest"], decode=one) for one in ("fast", "exact"))
    logits = np.array([[1.0, 1.1], [0.0, 9.0], [1.0, 1.1]], np.float32)
    ran = []

    def run(images):
        ran.append(len(images))
        assert np.array_equal(images[0], plain)
        return {"logits": np.array([[7.0, 8.0]], np.float32), "features": np.array([[5.0]], np.float32)}

    outputs = {"logits": logits, "features": np.zeros((3, 1), np.float32)}
    found = fast_decode.settled(outputs, [reduced, reduced, plain], run, "logits", 0.0)
    assert found["logits"].tolist() == [[7, 8], [0, 9], logits[2].tolist()]
    assert found["features"].tolist() == [[5], [0], [0]]
    assert ran == [1]
    assert fast_decode.settled(outputs, [plain] * 3, run, "logits", 0.0) is outputs


def test_a_file_that_is_gone_is_not_read_again(tmp_path):
    path = tmp_path / "photo.jpg"
    photo().save(path)
    wants = MODES["shortest"]
    fast, exact = prepare_pixels(path, wants, decode="fast"), prepare_pixels(path, wants)
    path.unlink()
    assert np.array_equal(fast.exactly(), exact)


def test_an_unknown_way_to_decode():
    with pytest.raises(UnknownName, match="quick"):
        prepare_pixels(np.zeros((9, 9, 3), np.uint8), MODES["shortest"], decode="quick")
    with pytest.raises(UnknownName, match="libfoo"):
        jpeg_decoders.probe("libfoo")


@pytest.mark.parametrize("name, package", [("opencv", "cv2"), ("turbojpeg", "turbojpeg")])
def test_a_decoder_that_is_not_installed_is_said_so_and_nothing_else_is_taken(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    found = jpeg_decoders.probe(name)
    assert not found.usable
    assert "install" in found.fix
    with pytest.raises(MissingDependency, match=f"decode='{name}'") as caught:
        prepare_pixels(encoded(photo()), MODES["shortest"], decode=name)
    assert "pip install" in caught.value.hint


def test_a_wrapper_without_its_library_is_said_so(monkeypatch):
    def no_library():
        raise RuntimeError("Unable to locate turbojpeg library automatically")

    jpeg_decoders._turbojpeg.cache_clear()
    monkeypatch.setitem(sys.modules, "turbojpeg", SimpleNamespace(__version__="2", TurboJPEG=no_library))
    found = jpeg_decoders.probe("turbojpeg")
    assert not found.usable
    assert found.missing == "libturbojpeg"
    assert "Unable to locate" in found.fix
    assert found.version == "2"


def fake_turbojpeg(data: bytes, pixel_format: int, scaling_factor: tuple[int, int]) -> np.ndarray:
    """What PyTurboJPEG's decode gives, by Pillow: pixels in RGB or gray, at a fraction of the size."""
    image = Image.open(io.BytesIO(data))
    reduced = image.convert("L" if pixel_format else "RGB").reduce(scaling_factor[1] // scaling_factor[0])
    return np.atleast_3d(np.asarray(reduced))


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_turbojpeg_gets_the_file_and_what_to_divide_by(color, monkeypatch):
    jpeg_decoders._turbojpeg.cache_clear()
    library = SimpleNamespace(
        __version__="2", TJPF_RGB=0, TJPF_GRAY=1, TurboJPEG=lambda: SimpleNamespace(decode=fake_turbojpeg)
    )
    monkeypatch.setitem(sys.modules, "turbojpeg", library)
    wants = Preprocess(size_hw=(32, 32), color=color)
    data = encoded(photo(), quality=95, exif=oriented(6))
    assert near(prepare_pixels(data, wants, decode="turbojpeg"), prepare_pixels(data, wants))
    with pytest.raises(InputError, match="truncated"):
        prepare_pixels(data[:4000], wants, decode="turbojpeg")
    jpeg_decoders._turbojpeg.cache_clear()


@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
@pytest.mark.parametrize("name", list(jpeg_decoders.DECODERS))
def test_installed_decoders_give_nearly_the_exact_pixels(name, color):
    if not jpeg_decoders.probe(name).usable:
        pytest.skip(f"{name} is not installed")
    wants = Preprocess(size_hw=(32, 32), color=color)
    data = encoded(photo(), quality=95, exif=oriented(6))
    assert near(prepare_pixels(data, wants, decode=name), prepare_pixels(data, wants))
    assert near(
        prepare_pixels(encoded(photo().convert("CMYK")), wants, decode=name),
        prepare_pixels(encoded(photo().convert("CMYK")), wants),
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("color", ["rgb", "bgr", "gray"])
def test_the_exact_path_is_decoding_and_then_resizing(mode, color):
    wants = Preprocess(
        **{
            **{name: getattr(MODES[mode], name) for name in ("size_hw", "resize_mode", "interpolation")},
            "color": color,
            "mean": (0.5,) if color == "gray" else (0.1, 0.5, 0.9),
            "std": (0.5,) if color == "gray" else (0.5, 0.5, 0.5),
        }
    )
    for source in (encoded(photo(), exif=oriented(8)), encoded(photo(), "PNG"), np.asarray(photo())):
        assert np.array_equal(prepare_pixels(source, wants), resize(decode(source, wants), wants))
