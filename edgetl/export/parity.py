"""Whether a graph answers as the torch model does: names, shapes, dtypes and values, every mismatch at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgetl.errors import EdgetlError, GateFailed
from edgetl.runtime.session import GraphSpec, Session, TensorSpec

# Float32 sums of another order differ in the last bits, and layers add them up: measured 5e-6 of the largest logit for
# EfficientNet-Lite0 at 128 px. Anything that is wrong rather than rounded is larger than this by orders of magnitude.
RELATIVE = 1e-4
BATCHES = (1, 5)  # neither is the size that was exported: a graph that is fixed to its sample is found out

Images = NDArray[np.float32]
Outputs = Callable[[Images], Mapping[str, NDArray[Any]]]
Pairs = Sequence[tuple[Mapping[str, NDArray[Any]], Mapping[str, NDArray[Any]]]]  # by the model, by the session


@dataclass(frozen=True)
class Parity:
    """The greatest difference that was found and what was allowed, both in units of the output, the logits first."""

    difference: float
    limit: float
    scale: float  # greatest |logit| of the torch model
    batches: tuple[int, ...]
    features: Parity | None = None  # the same of the features, where the graph gives them

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        plain = {"difference": self.difference, "limit": self.limit, "scale": self.scale, "batches": list(self.batches)}
        return plain | ({"features": self.features.to_json()} if self.features is not None else {})


def check(reference: Outputs, session: Session, spec: GraphSpec, *, graph: bytes, relative: float = RELATIVE,
          batches: Sequence[int] = BATCHES, seed: int = 0) -> Parity:
    """The proof that `session` over `graph` answers as `reference` does, on normal noise of several batch sizes.

    Args:
        reference: the torch model's own outputs by name, images [N, C, H, W] -> logits [N, K], features [N, D].
        session: over `graph`.
        spec: one image input, and the outputs: logits, and features where they were asked for.
        graph: the ONNX file, whose declared names, dtypes and shapes must be the spec's.
        relative: difference allowed, as a share of the greatest value (at least 1) of the reference's output.
        batches: numbers of images.
        seed: of the noise.

    Raises:
        GateFailed: carries every mismatch.
    """
    problems = declared_problems(graph, spec)
    noise = np.random.default_rng(seed)
    pairs = []
    for n in batches:
        images = noise.standard_normal((n, *_fixed(spec.inputs[0])), dtype=np.float32)
        answers: Mapping[str, NDArray[Any]]
        try:
            answers = session.run({spec.inputs[0].name: images})
        except EdgetlError as problem:  # a graph that takes no other batch than its sample's
            answers = {}
            problems.append(f"N={n}: {problem}")
        problems += [f"N={n}: {problem}" for problem in answer_problems(answers, spec, n)]
        pairs.append((reference(images), answers))
    proofs: dict[str, Parity] = {}
    for output in spec.outputs:
        proofs[output.role], too_far = _compared(output, pairs, batches, relative)
        problems += too_far
    if problems:
        raise GateFailed("The exported graph does not answer as the torch model does: " + "; ".join(problems) + ".",
                         hint="Report the model's name: this is a fault of the export, not of the training.")
    return dataclasses.replace(proofs["logits"], features=proofs.get("features"))


def _compared(output: TensorSpec, pairs: Pairs, batches: Sequence[int], relative: float) -> tuple[Parity, list[str]]:
    """One output's proof, and a sentence for each batch in which it differs by more than is allowed."""
    scale = max(1.0, *(float(np.abs(expected[output.name]).max()) for expected, _ in pairs))
    differences = [greatest_difference(expected[output.name], found.get(output.name)) for expected, found in pairs]
    limit = relative * scale
    problems = [f"N={n}: a {output.role.removesuffix('s')} differs by {difference:.3g}, allowed are {limit:.3g}"
                for n, difference in zip(batches, differences, strict=True) if not difference <= limit]
    return Parity(max(differences), limit, scale, tuple(batches)), problems


def greatest_difference(expected: NDArray[Any], found: NDArray[Any] | None) -> float:
    """max |expected - found|; infinite where shapes differ, nothing was found, or a value is not a number."""
    if found is None or expected.shape != found.shape:
        return float("inf")
    difference = float(np.abs(expected.astype(np.float64) - found.astype(np.float64)).max())
    return difference if np.isfinite(difference) else float("inf")


def answer_problems(answers: Mapping[str, NDArray[Any]], spec: GraphSpec, n: int) -> list[str]:
    """What is wrong with the names, dtypes and shapes of a session's answers for `n` images."""
    problems = [f"there is an output '{name}' that nobody expects" for name in sorted(set(answers) - _names(spec))]
    for tensor in spec.outputs:
        found = answers.get(tensor.name)
        shape = [n if side == "N" else side for side in tensor.shape]
        if found is None:
            problems.append(f"the output '{tensor.name}' is missing")
        elif [str(found.dtype), *found.shape] != [tensor.dtype, *shape]:
            problems.append(f"'{tensor.name}' is {found.dtype} {list(found.shape)}, expected {tensor.dtype} {shape}")
    return problems


def declared_problems(graph: bytes, spec: GraphSpec) -> list[str]:
    """What an ONNX file declares otherwise than the spec."""
    import onnx

    model = onnx.load_from_string(graph).graph
    weights = {tensor.name for tensor in model.initializer}
    problems = []
    for kind, values, tensors in (("input", model.input, spec.inputs), ("output", model.output, spec.outputs)):
        found = {value.name: _declared(value) for value in values if value.name not in weights}
        expected = {tensor.name: (tensor.dtype, tuple(tensor.shape)) for tensor in tensors}
        if found != expected:
            problems.append(f"the graph declares the {kind}s {found}, expected {expected}")
    return problems


def _declared(value: Any) -> tuple[str, tuple[int | str, ...]]:
    from onnx import helper

    tensor = value.type.tensor_type
    sides = (side.dim_param or (side.dim_value if side.HasField("dim_value") else "?") for side in tensor.shape.dim)
    return str(helper.tensor_dtype_to_np_dtype(tensor.elem_type)), tuple(sides)


def _names(spec: GraphSpec) -> set[str]:
    return {tensor.name for tensor in spec.outputs}


def _fixed(tensor: TensorSpec) -> tuple[int, ...]:
    return tuple(side for side in tensor.shape[1:] if isinstance(side, int))
