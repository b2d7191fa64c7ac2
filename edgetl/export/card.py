"""The model card of a bundle: what it is, how right and how fast, and how to run it; all of it from the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgetl.runtime import planes
from edgetl.runtime.heads import MULTILABEL, REGRESS, agreement_words, asked
from edgetl.runtime.manifest import Manifest, Variant, features_length, golden_words, rejection_words
from edgetl.runtime.preprocess import Preprocess

RESIZE = {
    "shortest": "the short side is resized to {resized} pixels, then the centre {height} x {width} is cut out",
    "squash": "resized to {height} x {width} without regard to the aspect ratio",
    "letterbox": "resized to fit into {height} x {width} with its aspect ratio, the rest filled",
}

ENGINES = {"cpu": "ONNX Runtime", "openvino": "OpenVINO", "cuda": "ONNX Runtime (CUDA)", "tensorrt": "TensorRT"}


def card(manifest: Manifest) -> str:
    """The card as markdown."""
    parts = [_head(manifest), _variants(manifest), _preprocessing(manifest), _run(manifest),
             _scores(manifest), _rejection(manifest), _drift(manifest), _origin(manifest), _rejected(manifest)]
    return "\n".join(part for part in parts if part)


def _head(manifest: Manifest) -> str:
    shown = ", ".join(f"`{label}`" for label in manifest.labels[:50])
    more = f" and {len(manifest.labels) - 50} more" if len(manifest.labels) > 50 else ""
    run = manifest.provenance.get("run", {})
    parameters = f" with {run['parameters']:,} parameters" if run.get("parameters") else ""
    model = run.get("model", "unknown model")
    if not manifest.heads:
        return (f"# {manifest.name}\n\nAn image classifier ({model}{parameters}) as a bundle of "
                f"edgetl.\n\n{len(manifest.labels)} labels: {shown}{more}\n")
    return (f"# {manifest.name}\n\nWhat is said of an image: {asked(manifest.heads)} ({model}{parameters}), as a "
            f"bundle of edgetl.\n\n{len(manifest.labels)} outputs: {shown}{more}\n\n{_answers(manifest)}\n")


def _answers(manifest: Manifest) -> str:
    """What the outputs mean, where they are no classes of one question."""
    first = manifest.heads[0]
    if first.kind == MULTILABEL:
        least, most = min(first.thresholds), max(first.thresholds)
        told = f"{least:g}" if least == most else f"{least:g} to {most:g}, see `thresholds` in the manifest"
        return f"A label is said from a probability (sigmoid of its output) of {told} on."
    if first.kind == REGRESS:
        return "Each output is a value in the unit that its column had in training."
    return "\n".join(f"- `{head.name}`: one of {', '.join(f'`{label}`' for label in head.labels[:50])}"
                     for head in manifest.heads)


def _variants(manifest: Manifest) -> str:
    rows = ["## Variants", "",
            f"The first is the default. Intervals bound 95 %; agreement {_agreeing(manifest)}is with fp32 on the same "
            "images; latency is the median of one image on one thread, back to back.", "",
            f"| variant | precision | runs on | size | split | images | {_score_name(manifest)} | interval | agreement "
            "| latency |",
            "|---|---|---|---|---|---|---|---|---|---|"]
    rows += [_row(variant, found) for variant in manifest.variants for found in variant.evaluations]
    machines = sorted({str(found["machine"]) for variant in manifest.variants for found in variant.evaluations})
    needs = [f"`{variant.name}` needs a processor with {', '.join(variant.requires)}." for variant in manifest.variants
             if variant.requires]
    needs += [_kernels(variant) for variant in manifest.variants if (variant.calibration or {}).get("fused")]
    length = features_length(manifest)
    needs += [] if length is None else [f"Beside the logits there are {length} features an image, which go into the "
                                        "last layer: the output `features`."]
    engines = dict.fromkeys(ENGINES.get(str(found["backend"]), str(found["backend"])) for variant in manifest.variants
                            for found in variant.evaluations)
    measured = f"Measured with {' and '.join(engines)} on: {', '.join(machines)}." if machines else "Not measured."
    elsewhere = [f"`{variant.name}`" for variant in manifest.variants
                 if any("simulates" in row for row in variant.evaluations)]
    if elsewhere:
        needs.append(f"{', '.join(elsewhere)} had no device here: the processor answered for "
                     "them, rounding as they do.")
    return "\n".join([*rows, "", " ".join([measured, *needs]), ""])


def _kernels(variant: Variant) -> str:
    """How much of an INT8 graph the engine that judged it computes with integers."""
    fused = (variant.calibration or {})["fused"]
    nodes = fused["integer_nodes"] + fused["float_nodes"] + fused["converting_nodes"]
    floats = ", ".join(f"{count} {op}" for op, count in fused["float_kernels"].items())
    return (f"ONNX Runtime computes {fused['integer_nodes']} of the {nodes} computing nodes of `{variant.name}` with "
            f"integers, {fused['float_nodes']} in floating point{f' ({floats})' if floats else ''}, and "
            f"{fused['converting_nodes']} convert; `edgetl bench BUNDLE --profile-layers` tells what each takes.")


def _row(variant: Variant, found: Mapping[str, Any]) -> str:
    agreement = found.get("agreement")
    same = "-" if agreement is None else f"{100 * agreement:.2f} %"
    latency = "not measured" if found["latency_s"] is None else f"{1e3 * found['latency_s']:.2f} ms"
    return (f"| {variant.name} | {variant.precision} | {', '.join(variant.backends)} "
            f"| {variant.size_bytes / 1e6:.2f} MB | {found['split']} | {found['n']} | {_right(found)} | {same} "
            f"| {latency} |")


def _right(found: Mapping[str, Any]) -> str:
    """The cells of the score and its interval."""
    if "accuracy" in found:
        return (f"{100 * found['accuracy']:.2f} % | {100 * found['accuracy_low']:.2f} to "
                f"{100 * found['accuracy_high']:.2f}")
    if found.get("score") is None:
        return "- | -"
    ends = "-" if found["score_low"] is None else f"{found['score_low']:.3f} to {found['score_high']:.3f}"
    return f"{found['score']:.3f} | {ends}"


def _score_name(manifest: Manifest) -> str:
    return next((str(row["score_name"]) for variant in manifest.variants for row in variant.evaluations
                 if "score_name" in row), "accuracy")


def _agreeing(manifest: Manifest) -> str:
    return f"({agreement_words(manifest.heads)}) " if manifest.heads else ""


def _preprocessing(manifest: Manifest) -> str:
    preprocess = manifest.preprocess
    height, width = preprocess.size_hw
    resized = round(min(height, width) / preprocess.crop_fraction)
    resize = RESIZE[preprocess.resize_mode].format(resized=resized, height=height, width=width)
    turned = "turned as its EXIF orientation says, " if preprocess.exif else ""
    return (f"## Preprocessing\n\nAn image is {turned}read as {preprocess.color}, and {resize} "
            f"({preprocess.interpolation}{', antialiased' if preprocess.antialias else ''}). A pixel value p becomes "
            f"(p * {preprocess.scale:.6g} - mean) / std with mean {list(preprocess.mean)} and std "
            f"{list(preprocess.std)}; the layout is {preprocess.layout}. "
            f"{_transparency(preprocess)}{_pixels(manifest)}The runtime does all of this.\n")


def _transparency(preprocess: Preprocess) -> str:
    if preprocess.color == planes.PLANES:
        return f"Images are arrays, uint8 [H, W, {preprocess.channels}], also as .npy files. "
    if preprocess.color == planes.RGBA:
        return ("The fourth channel is alpha as it is stored, and each channel is resized alone; images without it are "
                "refused. ")
    return f"Transparent pixels show {list(preprocess.alpha_background)}. "


def _pixels(manifest: Manifest) -> str:
    """What a graph that normalises by itself takes."""
    if not any(variant.embeds_preprocess for variant in manifest.variants):
        return ""
    height, width = manifest.preprocess.size_hw
    return (f"The graphs normalise by themselves: they take the resized pixels, uint8 [N, {height}, {width}, "
            f"{manifest.preprocess.channels}]. ")


def _run(manifest: Manifest) -> str:
    # -P: without it Python would look for modules in the current folder, which may be this one, first.
    return (f"## Use\n\n```sh\npip install \"dist/edgetl-{edgetl_version(manifest)}-py3-none-any.whl[cpu]\"  "
            "# made by `python -m build --wheel` in a checkout\n"
            "python -P -m edgetl.runtime predict BUNDLE IMAGE...\n```\n\n"
            "```python\nimport edgetl.runtime\n\nclassifier = edgetl.runtime.load(\"BUNDLE\")\n"
            f"print(classifier.predict(\"photo.jpg\"){_shown(manifest)})\n```\n")


def _shown(manifest: Manifest) -> str:
    """What an application reads of an answer."""
    if not manifest.heads:
        return ".label"
    first = manifest.heads[0]
    return {MULTILABEL: ".labels", REGRESS: ".values"}.get(first.kind, f".heads[{json.dumps(first.name)}].label")


def _scores(manifest: Manifest) -> str:
    """How sure the answers are, beside how right they are, before and after the temperature of each variant."""
    if any(one.temperatures for one in manifest.variants):
        return _temperatures(manifest)
    scaled = [(one, found) for one in manifest.variants if one.temperature is not None for found in one.evaluations]
    if not scaled:
        return ""
    rows = ["## Scores", "", "The runtime divides logits by a temperature that was fitted on the validation images, so "
            "that scores are as high as answers are right; no answer changes. ECE is the mean gap between both, in "
            "points.", "",
            "| variant | temperature | split | images | ECE before | ECE after | NLL before | NLL after |",
            "|---|---|---|---|---|---|---|---|"]
    rows += [f"| {one.name} | {one.temperature:.3g} | {found['split']} | {found['n']} | {100 * found['ece']:.2f} "
             f"| {100 * found['ece_scaled']:.2f} | {found['nll']:.3f} | {found['nll_scaled']:.3f} |"
             for one, found in scaled if "ece_scaled" in found]
    return "\n".join([*rows, ""])


def _temperatures(manifest: Manifest) -> str:
    """The temperature of each head of each variant."""
    rows = ["## Scores", "", "The runtime divides the logits of a head by a temperature that was fitted on the "
            "validation images, so that scores are as high as answers are right; no answer changes.", "",
            "| variant | head | temperature |", "|---|---|---|"]
    rows += [f"| {one.name} | {name} | {value:.3g} |" for one in manifest.variants
             for name, value in one.temperatures.items()]
    return "\n".join([*rows, ""])


def _rejection(manifest: Manifest) -> str:
    words = rejection_words(manifest)
    if words is None:
        return ""
    rows = ["## Rejection", "", f"Predictions are better rejected when their score is below {words}.", "",
            "| variant | split | images | accepted | right of these | at least (95 %) |", "|---|---|---|---|---|---|"]
    rows += [f"| {one['variant']} | {one['split']} | {one['n']} | {100 * one['coverage']:.1f} % "
             f"| {_percent(one['accuracy'])} | {_percent(one['accuracy_low'])} |"
             for one in (manifest.rejection or {}).get("checks", ())]
    return "\n".join([*rows, ""])


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f} %"


def _drift(manifest: Manifest) -> str:
    found = manifest.drift_reference
    if found is None:
        return ""
    return (f"## Drift\n\nOn {found['count']} images of {found['split']}, {found['variant']} answers with a top score "
            f"of {found['top']['mean']:.3f} and an entropy of {found['entropy']['mean']:.3f} nats on average. "
            "`edgetl.runtime.drift` tells when the answers on a device are no longer like these.\n")


def edgetl_version(manifest: Manifest) -> str:
    """The version of edgetl that exported the bundle."""
    return str(manifest.provenance["export"]["environment"]["versions"].get("edgetl", "VERSION"))


def _gain(run: Mapping[str, Any]) -> str:
    found = (run.get("metrics") or {}).get("gain") or {}
    return str(found.get("sentence", ""))


def _origin(manifest: Manifest) -> str:
    run, made = manifest.provenance.get("run", {}), manifest.provenance.get("export", {})
    data = run.get("data", {})
    lines = ["## Origin", ""]
    if data.get("name"):
        lines.append(f"- data: {data['name']}, fingerprint {str(data.get('fingerprint', ''))[:16]}")
    lines += [f"- {note}" for note in manifest.provenance.get("notes", ())]
    lines += [f"- trained by: {run['stage']}"] if run.get("stage") else []
    taught_by = run.get("teachers") or [run.get("teacher")]
    lines += [f"- teacher: {one['model']}" for one in taught_by if isinstance(one, Mapping) and one.get("model")]
    lines += [f"- beside a control without a teacher: {gain}"] if (gain := _gain(run)) else []
    if made:
        reason = f" ({made['fallback_reason']})" if made.get("fallback_reason") else ""
        lines.append(f"- exported by: {made['exporter']}{reason}, greatest difference to torch "
                     f"{made['parity']['difference']:.2g}")
        lines.append("- versions: " + ", ".join(f"{name} {version}" for name, version
                                                in made["environment"]["versions"].items()))
    lines.append(f"- golden images: {golden_words(manifest.golden)}")
    return "\n".join([*lines, ""])


def _rejected(manifest: Manifest) -> str:
    refused = manifest.provenance.get("rejected", ())
    return "\n".join(["## Left out", "", *(f"- {one['sentence']}." for one in refused), ""]) if refused else ""
