"""Parity, accuracy and latency of benchmarks/gpu.py."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gpu_models import network, photos
from gpu_plan import DONE, FAILED, NOT_RUN, Plan, Rows, first_line
from gpu_runners import Runner, closing, device_s, open_runner
from numpy.typing import NDArray

from edgetl import evaluate, timing
from edgetl.bench import stats
from edgetl.errors import EdgetlError
from edgetl.evaluate import Evaluation

PARITY_BATCH = 8
BLOCK_S = 0.4  # a block of a slow case ends about here, with no fewer than LEAST_CALLS kept
LEAST_CALLS = 5
# What a case is held against: the same precision on ONNX Runtime, and fp32 in PyTorch as it is.
REFERENCES = {"over_onnxruntime": lambda engine, precision: ("cuda", precision),
              "over_torch": lambda engine, precision: ("torch", "fp32"),
              "over_fp16": lambda engine, precision: (engine, "fp16")}

Answer = tuple[str, str]  # engine, precision


# ------------------------------------------------------------------------------------------------------------- parity


def parity(plan: Plan, rows: Rows) -> None:
    """Answers on the test images by model, engine and precision, beside fp32 in PyTorch on the processor."""
    for name in plan.models:
        try:
            reference = judged(dataclasses.replace(plan, device="cpu"), name, "torch", "fp32")
        except EdgetlError as problem:
            rows.add(NOT_RUN, model=name, reason=problem.message)
            continue
        trained = network(plan, name)[1]
        rows.add(DONE, model=name, engine="torch on the processor", precision="fp32", **described(reference, trained))
        # What is compiled has the same kernels up to their fusion; it is timed, not judged.
        for engine, precision in itertools.product([one for one in plan.engines if one != "torch-compile"],
                                                   plan.precisions):
            rows.attempt(functools.partial(held, plan, name, engine, precision, reference, trained),
                         model=name, engine=engine, precision=precision)


def judged(plan: Plan, name: str, engine: str, precision: str) -> Evaluation:
    """Answers on the test images."""
    runner = open_runner(plan, name, engine, precision)
    data, parts, _ = photos(plan)
    with closing({name: runner}):
        return evaluate.evaluate(lambda images: runner.run({"image": images})["logits"], parts.test, data.read,
                                 network(plan, name)[0].preprocess, classes=len(data.labels), batch=PARITY_BATCH)


def held(plan: Plan, name: str, engine: str, precision: str, reference: Evaluation, trained: bool) -> dict[str, Any]:
    """The row of answers beside a reference: the worst logit, in shares of the greatest, and agreement."""
    found = judged(plan, name, engine, precision)
    compared = evaluate.compare(found, reference)
    reach = max(float(np.abs(reference.logits).max()), 1e-12)
    worst = float(np.abs(found.logits - reference.logits).max())
    return {**described(found, trained), "worst_share": worst / reach, "agreement": compared.agreement,
            "drop_points": compared.drop_points if trained else None}


def described(found: Evaluation, trained: bool) -> dict[str, Any]:
    """Accuracy where there is something to be right about: random weights have none."""
    return {"n": found.n, **({"accuracy": found.accuracy, "accuracy_low": found.accuracy_low,
                              "accuracy_high": found.accuracy_high} if trained else {"accuracy": None})}


# ------------------------------------------------------------------------------------------------------------ latency


def latency(plan: Plan, rows: Rows) -> None:
    """Seconds a call of every engine and precision at every batch; those of one model and batch are interleaved."""
    for name in plan.models:
        for batch in plan.batches:
            Race(plan, rows, name, batch).run()


class Race:
    """All engines and precisions of one model at one batch."""

    def __init__(self, plan: Plan, rows: Rows, name: str, batch: int) -> None:
        self.plan, self.rows, self.key = plan, rows, {"model": name, "batch": batch}
        side = plan.image_size
        shape = (batch, 3, side, side)
        self.feeds = [{"image": np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)}
                      for seed in range(4)]
        self.first_s: dict[Answer, float] = {}

    def run(self) -> None:
        """Opens what can be opened, times it in rounds, and adds the rows."""
        runners = dict(self.opened())
        with closing({"/".join(answer): one for answer, one in runners.items()}):
            seconds = self.rounds(runners)
            for answer, samples in seconds.items():
                self.rows.add(DONE, **self.key, engine=answer[0], precision=answer[1],
                              **self.row(answer, samples, seconds, runners[answer]))

    def opened(self) -> Iterator[tuple[Answer, Runner]]:
        """Every runner that opens and answers; the others become rows that say why not."""
        for answer in itertools.product(self.plan.engines, self.plan.precisions):
            try:
                runner = open_runner(self.plan, self.key["model"], *answer, self.key["batch"])
            except Exception as problem:  # noqa: BLE001 (one that fails must not end the race of the others)
                self.refuse(answer, problem)
                continue
            try:
                runner.run(self.feeds[0])  # what compiles, compiles here
                _, self.first_s[answer] = timing.timed(functools.partial(runner.run, self.feeds[1]))
            except Exception as problem:  # noqa: BLE001 (as above)
                runner.close()
                self.refuse(answer, problem)
                continue
            yield answer, runner

    def refuse(self, answer: Answer, problem: Exception) -> None:
        """The row of a runner that could not start."""
        expected = isinstance(problem, EdgetlError)
        reason = " ".join(problem.message.split()) if isinstance(problem, EdgetlError) else (
            f"{type(problem).__name__}: {first_line(problem)}")
        self.rows.add(NOT_RUN if expected else FAILED, **self.key, engine=answer[0], precision=answer[1], reason=reason)

    def rounds(self, runners: Mapping[Answer, Runner]) -> dict[Answer, NDArray[np.float64]]:
        """Seconds [rounds, calls] of each, a block of every one in every round, in random order."""
        order, kept = np.random.default_rng(0), {answer: [] for answer in runners}
        for _ in range(self.plan.rounds if runners else 0):
            for place in order.permutation(len(runners)):
                answer = list(runners)[place]
                run = runners[answer].run
                calls = self.calls(answer)
                found = timing.block(lambda call, run=run: run(self.feeds[call % len(self.feeds)]),
                                     calls + timing.DROPPED)
                kept[answer].append(found.seconds)
        return {answer: np.asarray(blocks) for answer, blocks in kept.items()}

    def calls(self, answer: Answer) -> int:
        """Kept calls of a block."""
        return int(np.clip(BLOCK_S / max(self.first_s[answer], 1e-9), LEAST_CALLS, self.plan.block))

    def row(self, answer: Answer, samples: NDArray[np.float64], every: Mapping[Answer, NDArray[np.float64]],
            runner: Runner) -> dict[str, Any]:
        """What was measured of one, beside the others."""
        middle = stats.median_interval(samples)
        told = {"latency_s": middle.value, "latency_low_s": middle.low, "latency_high_s": middle.high,
                "throughput_ips": self.key["batch"] / middle.value, "calls": int(samples.size),
                "rounds_s": [float(np.median(one)) for one in samples], "device_s": device_s(runner, self.feeds[0])}
        for title, of in REFERENCES.items():
            reference = every.get(of(*answer))
            if reference is not None and of(*answer) != answer:
                told[title] = dataclasses.asdict(stats.speedup(reference, samples, seed=0))
        return told | ran(runner)


def ran(runner: Runner) -> dict[str, Any]:
    """What really ran, in the session's own words; nothing of PyTorch, which has none."""
    info = getattr(runner, "info", dict)()
    return {name: info.get(name) for name in ("provider", "precisions", "cuda_graph")} if info else {}
