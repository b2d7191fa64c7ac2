"""What edgetl does on an NVIDIA GPU: contract tests, mixed-precision training, engines, parity and latency.

    python benchmarks/gpu.py [--steps versions,contract,train,graphs,engines,parity,latency] [--budget 300]
    python benchmarks/gpu.py --device cpu --quick --out /tmp/gpu_cpu.json      # every line of it, without a card

Needs no network, and works with what is installed; what is missing is a row that says so. Each step is a process of its
own that may take `--budget` seconds: what it found until then is kept. Steps and models can be chosen, and what they
find replaces only its own rows in the json, so that a machine which is lent for minutes can be used several times
(`--work` keeps what the steps hand to one another). The markdown table is written beside the json.

`--data FILE.npz` is a packed set of images (benchmarks/gpu_data.py); without one, textures are drawn.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the checkout, where edgetl is not installed

import gpu_plan  # noqa: E402
import gpu_table  # noqa: E402
from gpu_plan import DONE, FAILED, Plan  # noqa: E402
from gpu_step import STEPS  # noqa: E402

from edgetl import rundir, timing  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
ENGINES = {"cuda": ("torch", "torch-compile", "cuda", "cuda-graph", "tensorrt"),
           "cpu": ("torch", "cpu", "openvino", "cuda", "tensorrt")}
KEYS = ("what", "pinned", "contract", "verb", "model", "precision", "engine", "flavor", "batch")  # of one row


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--quick", action="store_true", help="tiny models, few rounds: to try the script, no figures")
    add("--steps", default=",".join(STEPS))
    add("--models", help="of the panel (default: all)")
    add("--engines", help="of torch, torch-compile, cuda, cuda-graph, tensorrt, cpu, openvino")
    add("--batches", help="default: 1,8,64")
    add("--precisions", default=",".join(gpu_plan.PRECISIONS))
    add("--data", type=Path, help="FILE.npz of benchmarks/gpu_data.py (default: textures)")
    add("--budget", type=float, default=300.0, help="seconds that a step may take")
    add("--image-size", type=int)
    add("--epochs", type=int)
    add("--images", type=int, help="drawn a class, where there is no --data")
    add("--rounds", type=int)
    add("--contract", type=Path, default=ROOT / "tests" / "contract")
    add("--capability", default="8.9", help="that engines are built for where there is no card")
    add("--work", type=Path, default=Path(tempfile.gettempdir()) / "edgetl-gpu")
    add("--out", type=Path, help="FILE.json (default: benchmarks/results/gpu_DEVICE.json)")
    asked = parser.parse_args(words)
    for flag, known in (("steps", STEPS), ("precisions", gpu_plan.PRECISIONS)):
        wrong = set(getattr(asked, flag).split(",")) - set(known)
        if wrong:
            parser.error(f"--{flag} {sorted(wrong)[0]}: expected some of {','.join(known)}")
    return asked


def planned(asked: argparse.Namespace) -> Plan:
    """The plan; `--quick` lowers every number that is not given."""
    quick = asked.quick
    panel = gpu_plan.QUICK_PANEL if quick else gpu_plan.PANEL
    models = tuple((asked.models or ",".join(panel)).split(","))
    wrong = set(models) - set(panel)
    if wrong:
        raise SystemExit(f"--models {sorted(wrong)[0]}: expected some of {','.join(panel)}")
    return Plan(
        device=asked.device, work=str(asked.work.resolve()), panel=panel, models=models,
        data=None if asked.data is None else str(asked.data.resolve()),
        engines=tuple(asked.engines.split(",")) if asked.engines else ENGINES[asked.device],
        batches=tuple(int(one) for one in (asked.batches or ("1,2" if quick else "1,8,64")).split(",")),
        precisions=tuple(asked.precisions.split(",")), image_size=asked.image_size or (32 if quick else 224),
        epochs=asked.epochs or (1 if quick else 20), images=asked.images or (16 if quick else 60),
        classes=3 if quick else 10, rounds=asked.rounds or (2 if quick else 8), block=5 if quick else 50,
        contract=str(asked.contract.resolve()), capability=asked.capability)


def run_step(step: str, plan: Plan, budget_s: float) -> dict[str, Any]:
    """The rows of a step and how it ended: by itself, badly, or at the end of its budget."""
    rows, file = plan.folder / f"{step}.jsonl", plan.folder / f"{step}.plan.json"
    rows.unlink(missing_ok=True)
    rows.touch()
    gpu_plan.write(plan, file)
    begun_s = timing.now_s()
    reason = finish(start(step, file, rows), budget_s)
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    return {"status": DONE if reason is None else FAILED, "reason": None if reason is None else
            gpu_plan.cleaned(reason, plan), "seconds": timing.now_s() - begun_s, "rows": found}


def start(step: str, file: Path, rows: Path) -> subprocess.Popen[str]:
    """The process of a step; a group of its own, for it may have children."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, str(Path(__file__).with_name("gpu_step.py")), step, str(file), str(rows)]
    return subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, text=True,
                            stdout=sys.stderr, stderr=subprocess.PIPE, start_new_session=True)


def finish(process: subprocess.Popen[str], budget_s: float) -> str | None:
    """Waits for a step; why it did not end well, or None."""
    try:
        _, told = process.communicate(timeout=budget_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"its budget of {budget_s:.0f} s was used up; what is missing here was not run."
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    sys.stderr.write(told)
    if process.returncode == 0:
        return None
    last = told.strip().splitlines()[-1:] or ["it said nothing"]
    return f"it ended with {process.returncode}: {last[0][:300]}"


def merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """A step's result with the rows of an earlier call that the new one has none for."""
    def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in KEYS)

    fresh = {key(row) for row in new["rows"]}
    return {**new, "rows": [*(row for row in old.get("rows", ()) if key(row) not in fresh), *new["rows"]]}


def device_name(device: str) -> str:
    """The name of the card, or of the processor."""
    if device == "cpu":
        return str(rundir.cpu_model())
    import torch

    if not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device here; --device cpu --quick tries the script.")
    return str(torch.cuda.get_device_name(0))


def slug(name: str) -> str:
    """The name as a part of a file's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def earlier(out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """What an earlier call wrote.

    Raises:
        SystemExit: it is of another device, size or data, with which nothing is to be mixed.
    """
    if not out.exists():
        return {**about, "steps": {}}
    found: dict[str, Any] = json.loads(out.read_text())
    for name, value in about.items():
        if found.get(name) != value:
            raise SystemExit(f"{out} is of {name} '{found.get(name)}', and this would be of '{value}': "
                             "give another --out.")
    return found


def main(words: Sequence[str] | None = None) -> int:
    """Runs the steps, writes json and markdown after each; 1 where a step did not end well."""
    asked = arguments(words)
    plan, name = planned(asked), device_name(asked.device)
    out = asked.out or RESULTS / f"gpu_{slug(name)}.json"
    data = "textures drawn by benchmarks/gpu_data.py" if asked.data is None else f"images of {asked.data.name}"
    result = earlier(out, {"device": name, "quick": asked.quick, "image_size": plan.image_size, "data": data})
    plan.folder.mkdir(parents=True, exist_ok=True)
    bad = []
    for step in (one for one in STEPS if one in asked.steps.split(",")):
        found = run_step(step, plan, asked.budget)
        moment = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        result["steps"][step] = merged(result["steps"].get(step, {}), {**found, "moment": moment})
        counts = {status: sum(row["status"] == status for row in found["rows"]) for status in
                  (DONE, gpu_plan.NOT_RUN, FAILED)}
        print(f"{step}: {found['seconds']:.0f} s, {counts}" + (f"; {found['reason']}" if found["reason"] else ""),
              flush=True)
        rundir.write_json(out, result)
        rundir.write_text(out.with_suffix(".md"), gpu_table.markdown(result))
        bad += [step] if found["reason"] or counts[FAILED] else []
    print(out)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
