"""MLPerf's scenarios as a part of a benchmark: each case runs each of them alone, in the session that was timed."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgetl import recipe
from edgetl.bench import mlperf, phases
from edgetl.bench.cases import spec_to_json
from edgetl.bench.exam import Exam
from edgetl.bench.process import WorkerFailed
from edgetl.bench.trial import Trial
from edgetl.events import Listener
from edgetl.runtime import preprocess

PATIENCE = 3.0  # times what a scenario should take, after which its worker is thought to hang


def run(trials: Sequence[Trial], options: recipe.Bench, paper: Exam | None, order: np.random.Generator,
        listener: Listener, after: Callable[[], None] = lambda: None) -> None:
    """Every scenario that `options` names, of every case that was timed back to back, whose rows it extends.

    The test images are what the samples are, where there are some and the case can take them on this machine.

    Args:
        trials: with their processes.
        options: mode, scenario, min_duration_s, seed and timeout_s are used.
        paper: the test images.
        order: of the cases.
        listener: hears of progress.
        after: is called at the end of each scenario of a case.
    """
    asked = [trial for trial in trials if trial.blocks and trial.alive and trial.interval_s is None]
    names = list(dict.fromkeys(options.scenario))
    if options.mode != "mlperf" or not asked:
        return
    what = f"MLPerf's scenarios, {options.min_duration_s:g} s or longer each"
    with _keys(paper) as keys, phases.told(listener, phases.STAGE, what, len(names) * len(asked), "scenario") as step:
        for name in names:
            for trial in phases.shuffled(asked, order):
                found = scenario(trial, name, options, paper, keys)
                trial.found["mlperf"] = (*trial.found.get("mlperf", ()), found)
                step.advance(case=trial.case.name)
                after()


def scenario(trial: Trial, name: str, options: recipe.Bench, paper: Exam | None, keys: Path | None) -> mlperf.Scenario:
    """What one scenario found of a case; after a failure its process is gone, and what was measured before holds."""
    least_s = options.min_duration_s
    if trial.process is None:
        return mlperf.failed(name, "its worker had ended before", min_duration_s=least_s)
    request = {"do": "scenario", "scenario": name, "spec": spec_to_json(trial.case.subject.spec),
               "batch": trial.case.batch, "min_duration_s": least_s, "seed": options.seed}
    images = _images(trial, paper, keys)
    if images is not None:
        request["images"] = images
    try:
        told = trial.process.ask(request, extra_s=PATIENCE * _expected_s(trial, name, least_s))
    except WorkerFailed as problem:
        trial.close(at_once=True)
        return mlperf.failed(name, problem.message, min_duration_s=least_s)
    return mlperf.judge(name, told, min_duration_s=least_s, images=len(paper.items) if paper and images else None)


def _images(trial: Trial, paper: Exam | None, keys: Path | None) -> Mapping[str, Any] | None:
    """Where the worker finds the images; None where it makes its inputs up."""
    subject = trial.case.subject
    if paper is None or paper.heads:  # only tables of one class an image are opened there
        return None
    if trial.host.name is not None or subject.preprocess is None or len(subject.spec.inputs) != 1:
        return None
    return {"data": paper.record.source, "keys": str(keys), "preprocess": preprocess.to_dict(subject.preprocess)}


def _expected_s(trial: Trial, name: str, least_s: float) -> float:
    """Seconds that a scenario takes when calls are as quick as those that were timed."""
    rule, batch = mlperf.RULES[name], trial.case.batch
    calls = rule.min_samples / min(batch, rule.samples or batch)
    return max(least_s * mlperf.SLACK, calls * trial.call_s())


@contextlib.contextmanager
def _keys(paper: Exam | None) -> Iterator[Path | None]:
    """A file with the keys of the test images."""
    if paper is None:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="edgetl-bench-") as scratch:
        file = Path(scratch) / "keys.json"
        file.write_text(json.dumps([item.key for item in paper.items]))
        yield file
