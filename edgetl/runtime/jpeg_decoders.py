"""Other decoders of JPEG files than Pillow's, for those who have them installed and ask for them by name.

They reduce while they decode, as Pillow's does, and hand over arrays that need no repacking. They read JPEG files in
colour or gray only: what else there is (PNG, CMYK, pictures, arrays) is Pillow's, as is what need not be reduced.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import MissingDependency, UnknownName

# A file, what its sides are divided by, and whether it shall be gray -> pixels [H, W, 3] in RGB, or [H, W, 1].
Decode = Callable[[bytes, int, bool], NDArray[np.uint8]]
SCAN, END = b"\xff\xda", b"\xff\xd9"  # markers of JPEG: a scan begins, the image ends


@dataclass(frozen=True)
class Probe:
    """Whether a decoder can be used on this machine."""

    usable: bool
    version: str | None = None
    missing: str | None = None  # the package or library that is not installed
    fix: str | None = None  # what to do about it


def probe(name: str) -> Probe:
    """Whether the decoder of that name can be used, and what is missing where it cannot.

    Raises:
        UnknownName: no such decoder.
    """
    return _of(name)[0]()


def decoder(name: str) -> Decode:
    """The decoder of that name.

    Raises:
        UnknownName: no such decoder.
        MissingDependency: it is not installed, or its library is not; says which.
    """
    ask, make = _of(name)
    found = ask()
    if not found.usable:
        missing = MissingDependency(found.missing or name, extra="cpu", purpose=f"decode='{name}'")
        missing.hint = found.fix  # no extra of edgetl brings it
        raise missing
    return make()


def _of(name: str) -> tuple[Callable[[], Probe], Callable[[], Decode]]:
    if name not in DECODERS:
        raise UnknownName("decoder of JPEG files", name, list(DECODERS))
    return DECODERS[name]


def _probe_turbojpeg() -> Probe:
    try:
        import turbojpeg
    except ImportError:
        return Probe(False, missing="PyTurboJPEG", fix="pip install PyTurboJPEG, and the system's libturbojpeg.")
    version = str(getattr(turbojpeg, "__version__", "unknown"))
    try:
        _turbojpeg()
    except (RuntimeError, OSError) as problem:
        return Probe(False, version, "libturbojpeg", f"PyTurboJPEG is installed; the library it needs is a package of "
                                                     f"the system (libjpeg-turbo, libturbojpeg0). It says: {problem}")
    return Probe(True, version)


@functools.cache
def _turbojpeg() -> Any:
    import turbojpeg

    return turbojpeg.TurboJPEG()


def _with_turbojpeg() -> Decode:
    import turbojpeg

    def decode(data: bytes, scale: int, gray: bool) -> NDArray[np.uint8]:
        _check_whole(data)
        kind = turbojpeg.TJPF_GRAY if gray else turbojpeg.TJPF_RGB
        found: NDArray[np.uint8] = _turbojpeg().decode(data, pixel_format=kind, scaling_factor=(1, scale))
        return found
    return decode


def _probe_opencv() -> Probe:
    try:
        import cv2
    except ImportError as problem:
        return Probe(False, missing="cv2", fix=f"pip install opencv-python-headless ({problem}).")
    return Probe(True, str(cv2.__version__))


def _with_opencv() -> Decode:
    import cv2

    def decode(data: bytes, scale: int, gray: bool) -> NDArray[np.uint8]:
        _check_whole(data)
        wanted = getattr(cv2, f"IMREAD_REDUCED_{'GRAYSCALE' if gray else 'COLOR'}_{scale}")
        found = cv2.imdecode(np.frombuffer(data, np.uint8), wanted | cv2.IMREAD_IGNORE_ORIENTATION)
        if found is None:
            raise ValueError("OpenCV cannot decode it")
        pixels: NDArray[np.uint8] = found[:, :, None] if gray else found[:, :, ::-1]
        return pixels
    return decode


def _check_whole(data: bytes) -> None:
    """Pillow refuses a truncated file; these decoders fill up with gray and say so on stderr at most."""
    if data.rfind(END) < data.rfind(SCAN):
        raise ValueError("image file is truncated")


DECODERS: dict[str, tuple[Callable[[], Probe], Callable[[], Decode]]] = {
    "turbojpeg": (_probe_turbojpeg, _with_turbojpeg), "opencv": (_probe_opencv, _with_opencv)}
