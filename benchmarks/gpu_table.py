"""The result of benchmarks/gpu.py as markdown."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpu_plan import DONE

Row = Mapping[str, Any]
Columns = Mapping[str, Callable[[Row], str]]
NAMING = ("what", "contract", "engine", "flavor", "verb", "model", "precision", "batch")  # of a row, the widest first


def markdown(found: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [f"# {found['device']}", described(found)]
    for step, title in (("versions", "Machine"), ("contract", "Contract tests"), ("train", "Training"),
                        ("graphs", "Graphs"), ("engines", "TensorRT engines"), ("parity", "Parity and accuracy"),
                        ("latency", "Latency")):
        if step in found["steps"]:
            parts += [f"## {title}", *section(step, found["steps"][step])]
    return "\n\n".join(part for part in parts if part) + "\n"


def described(found: Mapping[str, Any]) -> str:
    """What the figures are of."""
    return (f"Written by `benchmarks/gpu.py` at {found['image_size']} px; {found['data']}. Latencies are host to host, "
            "back to back, all cases of one model and batch interleaved in rounds; medians with 95 % intervals. "
            "Models that were not trained here have random weights, and so no accuracy. fp32 is fp32: TF32 is off."
            + (" This was a try with tiny models: no figures." if found["quick"] else ""))


def section(step: str, found: Mapping[str, Any]) -> list[str]:
    """A step's sentence, its table, and what was not run."""
    done = [row for row in found["rows"] if row["status"] == DONE]
    lines = [] if found["reason"] is None else [f"The step ended early: {found['reason']}"]
    if done:
        lines.append(MAKERS[step](done))
    return [*lines, others(found["rows"])]


def table(columns: Columns, rows: Iterable[Row]) -> str:
    """Rows as a markdown table."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(make(row).replace("|", "\\|") for make in columns.values()) + " |" for row in rows]
    return "\n".join(lines)


def others(rows: Sequence[Row]) -> str:
    """What failed or was not run, the same reasons together."""
    by_reason: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        if row["status"] != DONE:
            by_reason[row["status"], str(row.get("reason"))].append(row)
    return "\n".join(f"- {status}: {names_of(found)}: {reason}" for (status, reason), found in by_reason.items())


def names_of(rows: Sequence[Row]) -> str:
    """What rows are about: every word that some of them have, by its kind."""
    found = {key: list(dict.fromkeys(str(row[key]) for row in rows if row.get(key) is not None)) for key in NAMING}
    return "; ".join(("batch " if key == "batch" else "") + ", ".join(words) for key, words in found.items() if words)


def text(key: str) -> Callable[[Row], str]:
    """The value as it is."""
    return lambda row: "" if row.get(key) is None else str(row[key])


def number(key: str, scale: float = 1.0, digits: int = 2) -> Callable[[Row], str]:
    """A number in the unit that `scale` makes of it; empty where there is none."""
    return lambda row: "" if row.get(key) is None else f"{scale * row[key]:.{digits}f}"


def interval(low: str, high: str, scale: float) -> Callable[[Row], str]:
    """Both ends of an interval."""
    def make(row: Row) -> str:
        if row.get(low) is None or row.get(high) is None:
            return ""
        return f"{scale * row[low]:.3f} to {scale * row[high]:.3f}"
    return make


def speedup(key: str) -> Callable[[Row], str]:
    """A ratio with its interval."""
    def make(row: Row) -> str:
        found = row.get(key)
        return "" if found is None else f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
    return make


def shares(row: Row) -> str:
    """Of a network's layers by precision."""
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in row["precisions"].items())


def facts(rows: Sequence[Row]) -> str:
    """A line for each thing that is known of the machine."""
    return "\n".join(f"- {row.get('what')}: " + "; ".join(
        f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
        for key, value in row.items() if key not in ("status", "what") and value not in (None, [], {})) for row in rows)


def measured(row: Row) -> str:
    """Accuracies of a training, by split."""
    return ", ".join(f"{split} {100 * one['accuracy']:.1f} % of {one['n']}" for split, one in row["metrics"].items())


MODEL: Columns = {"model": text("model"), "precision": text("precision")}
MAKERS: Mapping[str, Callable[[Sequence[Row]], str]] = {
    "versions": facts,
    "contract": lambda rows: table({"class": text("contract"), "passed": text("passed"), "skipped": text("skipped")},
                                   rows),
    "train": lambda rows: table({
        "verb": text("verb"), "model": text("model"), "device": text("device"), "mixed precision": text("amp"),
        "batch": text("batch_size"), "seconds": number("seconds", digits=1), "accuracy": measured}, rows),
    "graphs": lambda rows: table({**MODEL, "of": text("of"), "MB": number("size_bytes", 1e-6),
                                  "seconds": number("seconds", digits=1)}, rows),
    "engines": lambda rows: table({
        **MODEL, "built by": text("flavor"), "for": text("for"), "build, s": number("build_s"),
        "with timing cache, s": number("cached_build_s"), "MB": number("size_bytes", 1e-6), "layers": shares}, rows),
    "parity": lambda rows: table({
        **MODEL, "engine": text("engine"), "worst logit, %": number("worst_share", 100, 3),
        "agreement, %": number("agreement", 100), "accuracy, %": number("accuracy", 100),
        "95 %": interval("accuracy_low", "accuracy_high", 100), "images": text("n")}, rows),
    "latency": lambda rows: table({
        "model": text("model"), "batch": text("batch"), "engine": text("engine"), "precision": text("precision"),
        "ms": number("latency_s", 1e3, 3), "95 %": interval("latency_low_s", "latency_high_s", 1e3),
        "device alone, ms": number("device_s", 1e3, 3), "images/s": number("throughput_ips", digits=0),
        "times ONNX Runtime CUDA": speedup("over_onnxruntime"), "times PyTorch fp32": speedup("over_torch"),
        "times fp16": speedup("over_fp16")}, rows),
}
