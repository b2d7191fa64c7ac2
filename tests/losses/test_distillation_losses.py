"""Distillation losses: closed forms, invariances, numpy, finite differences, and what other libraries say."""

from __future__ import annotations

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from edgetl import losses, plugins
from edgetl.errors import EdgetlError
from edgetl.losses import Answer, Corpus, Given, at, crd, dist, dkd, fitnet, kd, rkd, sp
from edgetl.losses._standardize import standardized
from edgetl.losses.logit_standardization import logit_standardization_loss

RECORD = Path(__file__).parents[2] / "benchmarks" / "results" / "loss_reference.json"


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


# ------------------------------------------------------------------------------------------------ other libraries


def test_the_values_are_those_of_torchdistill_and_mdistiller() -> None:
    reference = importlib.import_module("benchmarks.loss_reference")
    record = json.loads(RECORD.read_text())
    own = reference.ours(reference.tensors())
    compared = {
        name: value
        for values in record["reference"].values()
        for name, value in values.items()
        if name != reference.OTHER_NORM
    }
    assert set(compared) == set(own) - {"fitnet"}
    for name, value in compared.items():
        assert own[name] == pytest.approx(value, rel=1e-6), name


# ------------------------------------------------------------------------------------------------------------- dkd


def test_dkd_is_zero_for_equal_answers() -> None:
    logits = normal(6, 4)
    assert dkd.dkd_loss(logits, logits, torch.tensor([0, 1, 2, 3, 0, 1]), 1, 8, 4).item() == pytest.approx(0, abs=1e-12)


def test_dkd_by_hand() -> None:
    """Teacher (1/2, 1/4, 1/4), student (1/2, 3/8, 1/8), class 0: only the others differ, 1/2 ln(2/3) + 1/2 ln 2."""
    teacher = torch.tensor([[0.5, 0.25, 0.25]], dtype=torch.float64).log()
    student = torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64).log()
    label = torch.tensor([0])
    others = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert dkd.dkd_loss(student, teacher, label, 1, 0, 1).item() == pytest.approx(0, abs=1e-12)
    assert dkd.dkd_loss(student, teacher, label, 0, 3, 1).item() == pytest.approx(3 * others)


def test_kd_is_dkd_with_the_weight_that_dkd_sets_free() -> None:
    """Equation 7 of the paper: KD = TCKD + (1 - p_t,y) * NCKD."""
    student, teacher, labels = normal(1, 5, seed=1), normal(1, 5, seed=2), torch.tensor([3])
    rest = 1 - torch.softmax(teacher, 1)[0, 3].item()
    expected = kd.kd_loss(student, teacher, 1.0).item()
    assert dkd.dkd_loss(student, teacher, labels, 1.0, rest, 1.0).item() == pytest.approx(expected)


def test_dkd_of_two_classes_has_no_others() -> None:
    student, teacher, labels = normal(4, 2, seed=1), normal(4, 2, seed=2), torch.tensor([0, 1, 1, 0])
    assert dkd.dkd_loss(student, teacher, labels, 0, 8, 4).item() == 0
    assert dkd.dkd_loss(student, teacher, labels, 1, 8, 4).item() == pytest.approx(kd.kd_loss(student, teacher, 4))


def test_dkd_takes_the_class_with_the_greater_share_of_a_mixed_image() -> None:
    student, teacher = Answer(normal(2, 3, seed=1)), Answer(normal(2, 3, seed=2))
    mixed = torch.tensor([[0.3, 0.7, 0.0], [0.9, 0.05, 0.05]], dtype=torch.float64)
    hard = torch.eye(3, dtype=torch.float64)[[1, 0]]
    loss = dkd.Loss()
    assert loss(student, teacher, Given(mixed)) == loss(student, teacher, Given(hard))


def test_standardized_logits_have_no_scale() -> None:
    student, teacher = Answer(normal(4, 5, seed=1)), Answer(normal(4, 5, seed=2))
    larger = Answer(7 * student.logits + 3)
    targets = Given(torch.eye(5)[:4])
    loss = dkd.Loss(standardize=1)
    torch.testing.assert_close(loss(larger, teacher, targets), loss(student, teacher, targets), rtol=1e-6, atol=1e-6)
    assert not torch.isclose(dkd.Loss()(larger, teacher, targets), dkd.Loss()(student, teacher, targets))


# ------------------------------------------------------------------------------------------- logit standardization


def test_z_scores_by_hand() -> None:
    torch.testing.assert_close(standardized(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[-1.0, 0.0, 1.0]]))
    assert standardized(torch.full((1, 4), 5.0)).abs().max() == 0


@settings(max_examples=30, deadline=None)
@given(st.floats(0.1, 10), st.floats(-5, 5), st.integers(0, 1000))
def test_logit_standardization_ignores_scale_and_offset(scale: float, offset: float, seed: int) -> None:
    student, teacher = normal(3, 6, seed=seed), normal(3, 6, seed=seed + 1)
    expected = logit_standardization_loss(student, teacher, 2.0)
    torch.testing.assert_close(logit_standardization_loss(scale * student + offset, teacher, 2.0), expected,
                               rtol=1e-5, atol=1e-6)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ dist


def test_dist_is_zero_for_equal_answers() -> None:
    logits = normal(6, 4)
    assert dist.dist_loss(logits, logits, 1, 1, 1).item() == pytest.approx(0, abs=1e-12)


def test_dist_equals_numpys_correlation() -> None:
    student, teacher = normal(7, 5, seed=1), normal(7, 5, seed=2)
    ours, theirs = softmax(student.numpy() / 2), softmax(teacher.numpy() / 2)
    between = np.mean([1 - np.corrcoef(ours[n], theirs[n])[0, 1] for n in range(7)])
    within = np.mean([1 - np.corrcoef(ours[:, k], theirs[:, k])[0, 1] for k in range(5)])
    assert dist.dist_loss(student, teacher, 3, 0.5, 2).item() == pytest.approx(4 * (3 * between + 0.5 * within))


@settings(max_examples=30, deadline=None)
@given(st.floats(0.05, 20), st.floats(-5, 5), st.integers(0, 1000))
def test_a_correlation_ignores_scale_and_offset(scale: float, offset: float, seed: int) -> None:
    one, other = normal(3, 6, seed=seed), normal(3, 6, seed=seed + 1)
    torch.testing.assert_close(dist.pearson(scale * one + offset, other), dist.pearson(one, other))
    assert dist.pearson(one, other).abs().max() <= 1 + 1e-9


# ---------------------------------------------------------------------------------------------------- feature maps


def test_fitnet_by_hand_and_zero_for_equal_maps() -> None:
    ones = torch.ones(2, 3, 4, 4)
    assert fitnet.fitnet_loss(ones, ones) == 0
    assert fitnet.fitnet_loss(ones, 3 * ones) == 4
    # The larger map is pooled to the smaller: 2x2 blocks of 0, 0, 0, 4 become 1.
    blocks = torch.tensor([[0.0, 0.0], [0.0, 4.0]]).repeat(2, 2)[None, None]
    assert fitnet.fitnet_loss(torch.ones(1, 1, 2, 2), blocks) == 0


def test_at_equals_numpy_and_ignores_scale_and_channels() -> None:
    student, teacher = normal(3, 4, 5, 5, seed=1), normal(3, 6, 5, 5, seed=2)

    def attention(values: np.ndarray) -> np.ndarray:
        energy = (values**2).mean(axis=1).reshape(len(values), -1)
        return energy / np.linalg.norm(energy, axis=1, keepdims=True)

    expected = ((attention(student.numpy()) - attention(teacher.numpy())) ** 2).mean()
    assert at.attention_loss(student, teacher).item() == pytest.approx(expected)
    assert at.attention_loss(9 * student, teacher).item() == pytest.approx(expected)
    assert at.attention_loss(student, torch.cat([student, student], 1)).item() == pytest.approx(0, abs=1e-12)


def test_at_by_hand() -> None:
    """All energy in one of two places against all in the other: unit vectors, so (1 + 1) / 2."""
    left, right = torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 5.0]]]])
    assert at.attention_loss(left, right).item() == pytest.approx(1)


def test_sp_equals_numpy_and_ignores_rotation_and_scale() -> None:
    student, teacher = normal(5, 8, seed=1), normal(5, 3, seed=2)

    def gram(values: np.ndarray) -> np.ndarray:
        found = values @ values.T
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    expected = ((gram(student.numpy()) - gram(teacher.numpy())) ** 2).sum() / 25
    assert sp.sp_loss(student, teacher).item() == pytest.approx(expected)
    turned, _ = torch.linalg.qr(normal(8, 8, seed=3))
    assert sp.sp_loss(4 * student @ turned, teacher).item() == pytest.approx(expected)
    assert sp.sp_loss(student @ turned, student).item() == pytest.approx(0, abs=1e-12)


def test_sp_by_hand() -> None:
    """Two unlike images against two equal ones: rows (1, 0), (0, 1) and (1, 1) / sqrt 2."""
    half = math.sqrt(0.5)
    expected = ((1 - half) ** 2 + half**2) * 2 / 4
    assert sp.sp_loss(torch.eye(2), torch.ones(2, 1)).item() == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------------- relations


def test_rkd_ignores_rotation_scale_and_shift() -> None:
    teacher = normal(6, 4, seed=1)
    turned, _ = torch.linalg.qr(normal(4, 4, seed=2))
    assert rkd.rkd_loss(3 * teacher @ turned + 5, teacher, 25, 50).item() == pytest.approx(0, abs=1e-9)
    assert rkd.rkd_loss(normal(6, 4, seed=3), teacher, 25, 50).item() > 0.1


def test_rkd_by_hand() -> None:
    """Points 0, 1, 3 on a line against 0, 1, 2: distances over their mean (1/2, 3/2, 1) and (3/4, 3/2, 3/4)."""
    student, teacher = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    expected = (2 * (0.25**2 / 2) + 2 * 0 + 2 * (0.25**2 / 2)) / 9
    assert rkd.rkd_loss(student, teacher, 1, 0).item() == pytest.approx(expected, rel=1e-5)
    assert rkd.rkd_loss(student, teacher, 0, 1).item() == pytest.approx(0, abs=1e-9)  # the same order on a line


def test_rkd_equals_numpy() -> None:
    student, teacher = normal(5, 3, seed=1), normal(5, 7, seed=2)

    def huber(one: np.ndarray, other: np.ndarray) -> float:
        apart = np.abs(one - other)
        return float(np.where(apart < 1, apart**2 / 2, apart - 0.5).mean())

    def relations(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        apart = np.linalg.norm(values[:, None] - values[None], axis=2)
        towards = values[None] - values[:, None]
        length = np.linalg.norm(towards, axis=2, keepdims=True)
        unit = np.divide(towards, length, out=np.zeros_like(towards), where=length > 0)
        return apart / apart[apart > 0].mean(), np.einsum("jid,jkd->jik", unit, unit)

    (near, corner), (far, edge) = relations(student.numpy()), relations(teacher.numpy())
    expected = 25 * huber(near, far) + 50 * huber(corner, edge)
    assert rkd.rkd_loss(student, teacher, 25, 50).item() == pytest.approx(expected, rel=1e-6)


def test_rkd_of_equal_embeddings_has_finite_gradients() -> None:
    student = torch.ones(3, 2, requires_grad=True)
    rkd.rkd_loss(student, normal(3, 2).float(), 25, 50).backward()
    assert student.grad is not None and bool(torch.isfinite(student.grad).all())


# ------------------------------------------------------------------------------------------------------------- crd


def test_contrast_by_hand() -> None:
    """One image, one negative of 4 images: noise 1/4; right pair 1/4 -> log 1/2, wrong one 3/4 -> log 1/4."""
    found = crd.contrast(torch.tensor([[0.25, 0.75]], dtype=torch.float64), 4)
    assert found.item() == pytest.approx(math.log(2) + math.log(4), rel=1e-5)


def built(**options: float) -> crd.Loss:
    loss = crd.Loss(width=4, negatives=6, **options)
    loss.build([torch.Size([3])], [torch.Size([5])], Corpus([0, 0, 0, 1, 1, 2, 2, 2]))
    return loss


def test_crd_draws_images_of_other_classes_equally_often() -> None:
    torch.manual_seed(0)
    others = built().others
    assert others is not None
    drawn = others.draw(torch.tensor([3, 7]), 6000)
    counts = torch.stack([torch.bincount(row, minlength=8) for row in drawn])
    assert counts[0, [3, 4]].sum() == 0 and counts[1, [5, 6, 7]].sum() == 0
    assert (counts[0, [0, 1, 2, 5, 6, 7]] - 1000).abs().max() < 150
    assert (counts[1, :5] - 1200).abs().max() < 150


def test_crd_remembers_what_it_saw_in_training_only() -> None:
    torch.manual_seed(0)
    loss = built(momentum=0.0)
    student, teacher = (Answer(torch.zeros(2, 3), (normal(2, width).float(),)) for width in (3, 5))
    batch = Given(torch.eye(3)[:2], torch.tensor([1, 6]))
    before = [memory.rows.clone() for memory in loss.memories]
    loss.eval()(student, teacher, batch)
    assert all(torch.equal(memory.rows, rows) for memory, rows in zip(loss.memories, before, strict=True))
    first = [memory.z.clone() for memory in loss.memories]
    loss.train()(student, teacher, batch)
    for memory, rows, project, one in zip(loss.memories, before, loss.projections, (student, teacher), strict=True):
        changed = (memory.rows != rows).any(dim=1)
        assert changed.nonzero().flatten().tolist() == [1, 6]
        torch.testing.assert_close(memory.rows[[1, 6]], F.normalize(project(one.features[0]), dim=1))
    assert [memory.z for memory in loss.memories] == first  # fixed by the first batch


def test_crd_falls_when_the_student_matches_the_teacher() -> None:
    torch.manual_seed(0)
    loss = crd.Loss(width=4, negatives=16)
    loss.build([torch.Size([5])], [torch.Size([5])], Corpus([0, 1, 2, 3] * 4))
    features = 3 * normal(16, 5).float()
    answer = Answer(torch.zeros(16, 4), (features,))
    batch = Given(torch.eye(4).repeat(4, 1), torch.arange(16))
    optimizer = torch.optim.Adam(loss.parameters(), 0.01)
    values = []
    for _ in range(60):
        optimizer.zero_grad()
        value = loss(answer, answer, batch)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert np.mean(values[-5:]) < 0.7 * np.mean(values[1:6])


@pytest.mark.parametrize(
    ("labels", "student", "says"),
    [([0, 0], [3], "at least two classes"), ([0, 1], [3, 3], "given 2 and 1 layers, expected one each")],
)
def test_crd_says_what_it_cannot_use(labels: list[int], student: list[int], says: str) -> None:
    with pytest.raises(EdgetlError, match=says):
        crd.Loss().build([torch.Size([width]) for width in student], [torch.Size([5])], Corpus(labels))
    with pytest.raises(EdgetlError, match="was not told"):
        built()(Answer(torch.zeros(1, 3)), Answer(torch.zeros(1, 3)), Given(torch.eye(3)[:1]))


# ------------------------------------------------------------------------------------------------------ all of them


LOGITS = ("bce", "binary-kd", "dist", "dkd", "focal", "imitation", "kd", "labels", "logit-standardization", "mse",
          "smooth-l1")  # fmt: skip


@pytest.mark.parametrize("name", plugins.names("losses"))
def test_gradients_by_finite_differences_and_none_for_the_teacher(name: str) -> None:
    torch.manual_seed(0)
    term = losses.parse([name + {"crd": ";negatives=3;width=4", "kd": ";temperature=3"}.get(name, "")])[0]
    loss, batch = term.loss.double(), Given(torch.eye(5, dtype=torch.float64)[[0, 2, 4]], torch.arange(3))
    shape = {losses.EMBEDDING: (4,), losses.LAST: (4, 2, 2), losses.STAGES: (4, 2, 2)}.get(
        getattr(loss, "features", ""), (5,)
    )
    student, teacher = (normal(3, *shape, seed=seed).requires_grad_() for seed in (1, 2))

    def value(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)  # crd draws
        answers = [Answer(one) if name in LOGITS else Answer(torch.zeros(3, 5), (one,)) for one in (ours, theirs)]
        found: torch.Tensor = loss(*answers, batch)
        return found

    if name not in LOGITS:
        loss.build([torch.Size(shape)], [torch.Size(shape)], Corpus([0, 1, 2]))
        loss.double().eval()
        value(student, teacher)  # crd fixes Z
    assert torch.autograd.gradcheck(lambda one: value(one, teacher), (student,), atol=1e-5)
    value(student, teacher.requires_grad_()).backward()
    assert student.grad is not None and student.grad.abs().max() > 0
    if name != "crd":  # whose second half teaches the teacher's projection
        assert teacher.grad is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("dkd;temperature=0", "'dkd' has temperature"),
        ("dkd;standardize=2", "standardize=2, expected 0 or 1"),
        ("dist;temperature=-1", "at least 0"),
        ("logit-standardization;temperature=0", "above 0"),
        ("crd;momentum=1", "from 0 to below 1"),
        ("crd;negatives=0.5", "whole numbers above 0"),
        ("crd;temperature=0", "above 0"),
        ("focal;gamma=-1", "finite number of at least 0"),
        ("smooth-l1;beta=0", "a number above 0"),
        ("labels;args=1", "no option|no loss in it has an option 'args'"),
    ],
)
def test_a_wrong_option_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(EdgetlError, match=says):
        losses.parse([text])


def test_the_page_tells_of_every_loss_and_its_options() -> None:
    page = (Path(__file__).parents[2] / "docs" / "losses.md").read_text()
    rows = {
        row[0].strip("` "): row
        for line in page.splitlines()
        if line.startswith("| `")
        for row in [line[1:-1].split("|")]
    }
    assert sorted(rows) == list(plugins.names("losses"))
    for name, row in rows.items():
        wanted = losses.options_of(plugins.load("losses", name).Loss)
        told = dict((part.strip().replace("`", "") + " ").split(" ", 1) for part in row[3].split(",") if part.strip())
        assert {key: value.strip() for key, value in told.items()} == {
            key: default if isinstance(default, str) else f"{default:g}" for key, default in wanted.items()
        }, name
