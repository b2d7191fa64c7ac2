"""Every failure that edgetl expects, as one tree.

    EdgetlError               one sentence and a hint; exit code 1
    +-- RecipeError           wrong or unknown key or value; carries ALL problems
    +-- UnknownName           a plug-in that does not exist; carries the choices
    +-- MissingDependency     a package is absent; names what to install
    +-- DataError             unreadable folder, bad label, no images, a leak with --strict-splits
    +-- DataGone              a server is away, or a shard was written anew, in the middle of the work
    +-- OutputError           --out exists, cannot be written
    |   +-- DiskFull          the system has no room for a file
    +-- TrainingError         the loss is not finite, a checkpoint does not fit
    +-- BackendUnavailable    the provider asked for cannot run, or is not the one running
    +-- BundleError           missing file, wrong digest, schema too old or too new, path outside the bundle
    +-- InputError            an image or array that cannot be used for prediction
    +-- Overloaded            more images are waiting than may; try again later
    +-- GateFailed            parity, accuracy or regression outside the limit; exit code 3
    +-- GateUndecided         the noise was larger than what was to be seen; exit code 4

Anything else that is raised is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Sequence

# What an extra of pyproject.toml installs, for hints: edgetl itself is on no registry, its packages are.
PACKAGES = {
    "cpu": "onnxruntime pillow",
    "openvino": "openvino pillow",
    "cli": "typer rich matplotlib scipy",
    "train": "torch torchvision timm torch-pruning safetensors onnx onnxscript tensorboard fsspec pillow scipy",
}


class EdgetlError(Exception):
    """An expected failure: what was found, what was expected, and in `hint` what to do."""

    exit_code = 1
    told = False  # whether another process of the same training says it

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class RecipeError(EdgetlError):
    """Every problem of a recipe at once."""

    def __init__(self, problems: Sequence[str], *, where: str = "the recipe") -> None:
        self.problems = tuple(problems)
        listed = self.problems[0] if len(self.problems) == 1 else "".join(f"\n  - {one}" for one in self.problems)
        super().__init__(
            f"{where}: {listed}" if len(self.problems) == 1 else f"{where} has {len(problems)} problems:{listed}"
        )


class UnknownName(EdgetlError):
    """A name that no file of a catalogue carries."""

    def __init__(self, kind: str, name: str, choices: Sequence[str]) -> None:
        self.kind, self.name, self.choices = kind, name, tuple(choices)
        import difflib  # here, because every start of the runtime would pay for it

        near = difflib.get_close_matches(name, self.choices, n=1, cutoff=0.5)
        suggestion = f" Did you mean '{near[0]}'?" if near else ""
        shown = ", ".join(self.choices[:20]) + (", ..." if len(self.choices) > 20 else "")
        super().__init__(f"There is no {kind} named '{name}'.{suggestion}", hint=f"Choices: {shown}")


def install_hint(extra: str, package: str = "") -> str:
    """How to install what an extra holds, of a checkout as of a wheel: by the names of its packages.

    Args:
        extra: of pyproject.toml.
        package: what to install where the extra is not one of `PACKAGES`.
    """
    return f"Install what is missing with: pip install {PACKAGES.get(extra, package)}"


class MissingDependency(EdgetlError):
    """A package that the chosen road needs is not installed."""

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package '{package}', which is not installed.",
            hint=install_hint(extra, package),
        )


class DataError(EdgetlError):
    """The images or labels cannot be used as they are."""


class DataGone(EdgetlError):
    """Data that was there when the work began is not there any more; no fault of the image that was asked for."""


class OutputError(EdgetlError):
    """The place to write to exists, is not writable, or is full."""


class DiskFull(OutputError):
    """The system has no room for a file: the disk, a quota or a limit is exhausted."""


class TrainingError(EdgetlError):
    """Training cannot go on: the loss is not finite, or a checkpoint does not fit."""


class BackendUnavailable(EdgetlError):
    """A backend cannot run here, or another provider than the one asked for would run."""


class BundleError(EdgetlError):
    """A bundle is incomplete, altered, or of a schema that this version cannot read."""


class InputError(EdgetlError):
    """An image or array handed to the runtime cannot be used."""


class Overloaded(EdgetlError):
    """As much work is waiting as was allowed; the caller should slow down and try again."""


class GateFailed(EdgetlError):
    """The work was done and the answer is no: parity, accuracy or regression outside its limit."""

    exit_code = 3


class GateUndecided(EdgetlError):
    """The work was done and there is no answer: what was to be seen is smaller than the noise."""

    exit_code = 4
