"""Sets that live in files elsewhere: read from small copies made here; offline they say what to do."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgetl import plugins
from edgetl.datasets import open_data
from edgetl.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_idx(path: Path, values: np.ndarray) -> None:
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))


@pytest.fixture
def clothes(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "fashion-mnist"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for begin, count in (("train", 20), ("t10k", 10)):
        write_idx(folder / f"{begin}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28)))
        write_idx(folder / f"{begin}-labels-idx1-ubyte.gz", np.arange(count) % 10)
    return folder


def no_network(url: str, root: str, **options: object) -> None:
    raise OSError("Name or service not known")


def test_fashion_mnist_from_the_users_data(clothes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGETL_DATA", str(clothes.parent))
    data = open_data("fashion-mnist")
    assert [item.split for item in data.items] == ["test"] * 10 + ["train"] * 20
    assert [item.label for item in data.items[:3]] == [0, 1, 2]
    raw = gzip.decompress((clothes / "t10k-images-idx3-ubyte.gz").read_bytes())[16:16 + 784]
    with Image.open(io.BytesIO(data.read(data.items[0]))) as image:
        assert np.asarray(image).tobytes() == raw


def test_fashion_mnist_from_a_folder(clothes: Path, tmp_path: Path) -> None:
    assert len(open_data(f"fashion_mnist:{clothes}").items) == 30
    with pytest.raises(DataError, match="lacks the files"):
        open_data(f"fashion-mnist:{tmp_path}")


DAMAGE = {"empty": b"", "no gzip": b"no gzip", "short": gzip.compress(b"\0\0\x08\x03\0\0"),
          "other": gzip.compress(b"x" * 40), "cut": gzip.compress(b"x" * 40)[:-12]}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_fashion_mnist(clothes: Path, damage: bytes) -> None:
    (clothes / "train-images-idx3-ubyte.gz").write_bytes(damage)
    with pytest.raises(DataError, match="train-images-idx3-ubyte"):
        open_data(f"fashion-mnist:{clothes}")


def test_fashion_mnist_whose_labels_do_not_fit(clothes: Path) -> None:
    write_idx(clothes / "train-labels-idx1-ubyte.gz", np.full(20, 11))
    with pytest.raises(DataError, match="do not belong together"):
        open_data(f"fashion-mnist:{clothes}")


@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_offline_says_what_to_do(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.utils.download_url", no_network)
    monkeypatch.setattr(plugins.load("datasets", "fashion-mnist"), "SYSTEM", tmp_path / "nothing")
    with pytest.raises(DataError, match="cannot be fetched") as caught:
        open_data(name)
    assert f"$EDGETL_DATA/{name}" in str(caught.value.hint)


def test_a_wrong_digest_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def corrupted(url: str, root: str, **options: object) -> None:
        raise RuntimeError("File not found or corrupted.")

    monkeypatch.setattr("torchvision.datasets.utils.download_url", corrupted)
    with pytest.raises(DataError, match="corrupted"):
        open_data("cifar10")


def write_pngs(root: Path, classes: tuple[str, ...]) -> Path:
    for part in ("train", "test"):
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (32, 32)).save(folder / "1.png")
    return root


def test_cifar10_from_png_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_pngs(tmp_path / "data" / "cifar10", CLASSES)
    monkeypatch.setenv("EDGETL_DATA", str(root.parent))
    for spec in ("cifar10", f"cifar10:{root}"):
        data = open_data(spec)
        assert (data.name, data.labels, len(data.items)) == ("cifar10", CLASSES, 20)
    with pytest.raises(DataError, match="is not CIFAR-10"):
        open_data(f"cifar10:{write_pngs(tmp_path / 'other', ('a', 'b'))}")


def archive(path: Path, rows: np.ndarray, files: int = 5) -> None:
    names = [f"data_batch_{number}.bin" for number in range(1, files + 1)] + ["test_batch.bin"]
    with tarfile.open(path, "w:gz") as opened:
        for name in names:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = rows.nbytes
            opened.addfile(member, io.BytesIO(rows.tobytes()))


def test_cifar10_from_the_binary_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    rows = random.integers(0, 256, (3, 3073), dtype=np.uint8)
    rows[:, 0] = (0, 9, 4)

    def download(url: str, root: str, **options: object) -> None:
        Path(root).mkdir(parents=True)
        archive(Path(root) / "cifar-10-binary.tar.gz", rows)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    data = open_data("cifar10")
    assert [item.label for item in data.items[:3]] == [0, 9, 4]
    assert len(data.items) == 18
    with Image.open(io.BytesIO(data.read(data.items[0]))) as image:
        assert image.getpixel((1, 0)) == tuple(rows[0, [2, 1026, 2050]].tolist()), "red, green and blue planes"


@pytest.mark.parametrize("files", [0, 4])
def test_an_incomplete_archive(files: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(url: str, root: str, **options: object) -> None:
        Path(root).mkdir(parents=True)
        archive(Path(root) / "cifar-10-binary.tar.gz", np.zeros((1, 3073), np.uint8), files)

    monkeypatch.setattr("torchvision.datasets.utils.download_url", download)
    with pytest.raises(DataError, match="is damaged"):
        open_data("cifar10")
