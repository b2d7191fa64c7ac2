"""What benchmarks/gpu.py asks of each of its steps, and how a step tells what it found: rows, one JSON line each."""

from __future__ import annotations

import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgetl.errors import EdgetlError

ROOT = Path(__file__).resolve().parents[1]
PANEL = {
    "efficientnet-lite0": "efficientnet-lite/efficientnet_lite0",
    "slim": "slim:0.4",  # of efficientnet-lite0
    "resnet50": "torchvision/resnet50",
    "mobilenetv3-large": "torchvision/mobilenet_v3_large",
    "vit-tiny": "timm/vit_tiny_patch16_224",
}
TEACHER = "efficientnet-lite0"
QUICK_PANEL = {TEACHER: "timm/test_efficientnet", "slim": "slim:0.4", "mobilenetv3-large": "timm/test_resnet"}
PRECISIONS = ("fp32", "fp16", "int8")
DONE, FAILED, NOT_RUN = "done", "failed", "not run"


@dataclass(frozen=True)
class Plan:
    """One call of the script."""

    device: str  # "cuda" | "cpu"
    work: str  # folder for what the steps hand to one another
    data: str | None  # packed file; None: textures
    panel: Mapping[str, str]
    models: tuple[str, ...]  # of the panel
    engines: tuple[str, ...]  # what runs the models
    batches: tuple[int, ...]
    precisions: tuple[str, ...]
    image_size: int
    epochs: int
    images: int  # drawn a class
    classes: int
    rounds: int
    block: int
    contract: str  # folder of the contract's tests
    capability: str  # that engines are built for where there is no card

    @property
    def folder(self) -> Path:
        """`work` as a path."""
        return Path(self.work)

    def run_of(self, name: str) -> Path:
        """Where the trained model of that name lies, if one was trained."""
        return self.folder / "runs" / name

    def graph_of(self, name: str, precision: str) -> Path:
        """Where the graph lies, if it was exported."""
        return self.folder / "graphs" / f"{name}.{precision}.onnx"


def read(file: Path) -> Plan:
    """The plan that `write` wrote."""
    values = json.loads(file.read_text())
    return Plan(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def write(plan: Plan, file: Path) -> None:
    """Keeps a plan for the processes of the steps."""
    file.write_text(json.dumps(dataclasses.asdict(plan)))


class Rows:
    """The rows of a step, kept line by line: what was found before a step ends badly is there."""

    def __init__(self, file: Path, plan: Plan) -> None:
        self.file, self.plan = file, plan

    def add(self, status: str, /, **row: Any) -> None:
        """One more row; texts lose the names of this machine's folders."""
        with self.file.open("a") as lines:
            lines.write(cleaned(json.dumps({"status": status, **row}), self.plan) + "\n")

    def attempt(self, work: Callable[[], Mapping[str, Any]], **key: Any) -> None:
        """A row of what `work` returns, or of why it could not be done; the next rows come all the same."""
        try:
            found = work()
        except EdgetlError as problem:
            self.add(NOT_RUN, **key, reason=" ".join(problem.message.split()))
        except Exception as problem:  # noqa: BLE001 (whatever a library says of one row, others are to follow)
            self.add(FAILED, **key, reason=f"{type(problem).__name__}: {first_line(problem)}")
        else:
            self.add(DONE, **key, **found)


def first_line(problem: BaseException) -> str:
    """What a library says, less its stack."""
    return (str(problem).strip() or "no message").splitlines()[0][:300]


def cleaned(text: str, plan: Plan) -> str:
    """The text without names of folders that only this machine has."""
    for place in (plan.work, str(ROOT), tempfile.gettempdir(), str(Path.home())):
        text = re.sub(rf"{re.escape(place)}(?![\w-])", "...", text) if len(place) > 1 else text
    return text
