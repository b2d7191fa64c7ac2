"""Our losses beside those of torchdistill and mdistiller, on the same random tensors.

    python benchmarks/loss_reference.py [--mdistiller DIR] [--out results/loss_reference.json]

Needs torchdistill (`pip install torchdistill`); DIR is a clone of github.com/megvii-research/mdistiller, of which two
files are read, for dkd and sp. What they say is recorded, and tests/losses holds ours against the record.
"""

from __future__ import annotations

import argparse
import ast
import importlib.metadata
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from edgetl import rundir
from edgetl.losses import at, crd, dist, fitnet, kd, logit_standardization, rkd, sp
from edgetl.losses.dkd import dkd_loss

# torchdistill 1.1.5 brings the rows to an absolute sum of 1, the paper and mdistiller to unit length.
OTHER_NORM = "sp with rows of absolute sum 1"
SEED, IMAGES, WIDTH, TEMPERATURE = 20261121, 12, 5, 3.0


def tensors() -> dict[str, torch.Tensor]:
    """The random tensors, the same on every machine: numpy promises the stream of a seed."""
    rng = np.random.default_rng(SEED)
    found = {name: rng.normal(size=shape) for name, shape in {
        "student_logits": (6, 5), "teacher_logits": (6, 5), "student_map": (6, 4, 3, 3), "teacher_map": (6, 4, 3, 3),
        "student_embedding": (6, 7), "teacher_embedding": (6, 9), "student_memory": (IMAGES, WIDTH),
        "teacher_memory": (IMAGES, WIDTH), "student_contrast": (6, WIDTH), "teacher_contrast": (6, WIDTH)}.items()}
    whole = {"labels": rng.integers(0, 5, 6), "index": rng.permutation(IMAGES)[:6],
             "negatives": rng.integers(0, IMAGES, (6, 8))}
    return {name: torch.from_numpy(value) for name, value in {**found, **whole}.items()}


def ours(given: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """What our pure functions say."""
    logits = given["student_logits"], given["teacher_logits"]
    maps = given["student_map"], given["teacher_map"]
    embeddings = given["student_embedding"], given["teacher_embedding"]
    values = {
        "kd": kd.kd_loss(*logits, TEMPERATURE),
        "logit-standardization": logit_standardization.logit_standardization_loss(*logits, TEMPERATURE),
        "dkd": dkd_loss(*logits, given["labels"], 1.0, 8.0, TEMPERATURE),
        "dist": dist.dist_loss(*logits, 2.0, 0.5, TEMPERATURE),
        "fitnet": fitnet.fitnet_loss(*maps),
        "at": at.attention_loss(*maps),
        "rkd": rkd.rkd_loss(*embeddings, 25.0, 50.0),
        "sp": sp.sp_loss(*maps),
        "crd": _our_crd(given),
    }
    return {name: float(value) for name, value in values.items()}


def _our_crd(given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    chosen = torch.cat([given["index"][:, None], given["negatives"]], dim=1)
    total = torch.zeros((), dtype=torch.float64)
    for embedding, memory in (("student_contrast", "teacher_memory"), ("teacher_contrast", "student_memory")):
        bank = crd.Memory(IMAGES, WIDTH).double()
        bank.rows.copy_(F.normalize(given[memory], dim=1))
        total = total + crd.contrast(bank.pairs(F.normalize(given[embedding], dim=1), chosen, 0.07), IMAGES)
    return total


def torchdistills(given: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """What torchdistill says; where it leaves T^2 to a weight, that weight is put on."""
    from torchdistill.losses import mid_level as theirs

    said = [{"a": {"output": given[f"{who}_logits"]}, "m": {"output": given[f"{who}_map"]},
             "e": {"output": given[f"{who}_embedding"]}} for who in ("student", "teacher")]
    pair = {"pair": {"student": {"path": "m", "io": "output"}, "teacher": {"path": "m", "io": "output"}}}
    places = ("a", "output", "a", "output")
    square = TEMPERATURE**2
    values = {
        "kd": theirs.KDLoss(*places, temperature=TEMPERATURE, beta=1.0)(*said) * square,
        "logit-standardization": theirs.LogitStdKDLoss(*places, temperature=TEMPERATURE, beta=1.0)(*said) * square,
        "dist": theirs.DISTLoss(*places, beta=2.0, gamma=0.5, tau=TEMPERATURE)(*said),
        "at": theirs.ATLoss(pair)(*said),
        "rkd": theirs.RKDLoss("e", "e", 25.0, 50.0, "mean")(*said),
        OTHER_NORM: theirs.SPKDLoss("m", "m", "batchmean")(*said),
        "crd": _their_crd(theirs.CRDLoss, given),
    }
    return {name: float(value) for name, value in values.items()}


def _their_crd(kind: Any, given: Mapping[str, torch.Tensor]) -> torch.Tensor:
    loss = kind.__new__(kind)  # its __init__ fails in version 1.1.5: it reads self.prob, and the name is self.probs
    torch.nn.Module.__init__(loss)
    loss.eps, loss.num_samples = 1e-7, IMAGES
    loss.params = torch.tensor([8, 0.07, -1, -1, 0.5], dtype=torch.float64)
    loss.memory_v1, loss.memory_v2 = (F.normalize(given[name], dim=1) for name in ("student_memory", "teacher_memory"))
    chosen = torch.cat([given["index"][:, None], given["negatives"]], dim=1)
    embeddings = (F.normalize(given[name], dim=1) for name in ("student_contrast", "teacher_contrast"))
    total = torch.zeros((), dtype=torch.float64)
    for pairs in loss.contrast_memory(*embeddings, given["index"], chosen):
        total = total + loss.compute_contrast_loss(pairs).sum()
    return total


def mdistillers(clone: Path, given: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """What mdistiller says of dkd and sp; only the functions of these files are run."""
    logits, maps = ([given[f"{who}_{what}"] for who in ("student", "teacher")] for what in ("logits", "map"))
    dkd, similarity = (_functions(clone / "mdistiller/distillers" / file) for file in ("DKD.py", "SP.py"))
    return {"dkd": float(dkd["dkd_loss"](*logits, given["labels"], 1.0, 8.0, TEMPERATURE)),
            "sp": float(similarity["similarity_loss"](*maps))}


def _functions(file: Path) -> dict[str, Any]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    found: dict[str, Any] = {"torch": torch, "F": F}
    exec(compile(tree, file.name, "exec"), found)
    return found


def main() -> None:
    """Prints the values side by side; exits with 1 where they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mdistiller", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    given = tensors()
    own, reference = ours(given), {"torchdistill": torchdistills(given)}
    if options.mdistiller is not None:
        reference["mdistiller"] = mdistillers(options.mdistiller, given)
    for source, values in reference.items():
        for name, value in values.items():
            print(f"{name:22} {source:12} {value:.12g}  ours {own.get(name, math.nan):.12g}")
    wrong = [name for values in reference.values() for name, value in values.items()
             if name != OTHER_NORM and not math.isclose(value, own[name], rel_tol=1e-6)]
    if options.out is not None:
        versions = {"torchdistill": importlib.metadata.version("torchdistill")}
        rundir.write_json(options.out, {"seed": SEED, "temperature": TEMPERATURE, "reference": reference, "ours": own,
                                        "compared_with": versions, "environment": rundir.environment()})
    if wrong:
        raise SystemExit(f"different: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
