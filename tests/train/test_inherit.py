"""What a student inherits of a larger model, and that the report is true."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import tiny_run
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgetl import rundir, weights
from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.recipe import Distill, build
from edgetl.recipe_fields import DataFields
from edgetl.runtime.preprocess import Preprocess
from edgetl.train.inherit import inherit, require_heir, uniform
from edgetl.train.slimming import starting_student
from edgetl.train.student import distill


def reference(tensor: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The paper's rule, element by element."""
    def place(have: int, want: int, index: int) -> int:
        if have % want == 0:
            return index * (have // want)
        return int(torch.linspace(0, have - 1, want).round()[index])

    found = torch.empty(shape)
    for index in torch.cartesian_prod(*[torch.arange(one) for one in shape]).reshape(-1, len(shape)).tolist():
        found[tuple(index)] = tensor[tuple(map(place, tensor.shape, shape, index))]
    return found


sizes = st.integers(1, 7)


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=3))
def test_uniform_selection_is_the_papers(pairs: list[tuple[int, int]]) -> None:
    have, want = [max(pair) for pair in pairs], torch.Size([min(pair) for pair in pairs])
    tensor = torch.randn(have, generator=torch.Generator().manual_seed(0))
    assert torch.equal(uniform(tensor, want), reference(tensor, want))


def test_every_other_and_the_ends() -> None:
    line = torch.arange(8.0)
    assert uniform(line, torch.Size([4])).tolist() == [0, 2, 4, 6]
    assert uniform(line, torch.Size([3])).tolist() == [0, 4, 7]  # 3.5 is rounded to the even
    assert uniform(line, torch.Size([8])).tolist() == line.tolist()
    small = uniform(torch.arange(12.0).reshape(4, 3), torch.Size([2, 2]))
    assert small.tolist() == [[0, 2], [6, 8]]


def net(width: int, depth: int, *, classes: int = 3, kernel: int = 3, seed: int = 0) -> Network:
    """`depth` convolutions with batch norms, and a head."""
    layers: OrderedDict[str, torch.nn.Module] = OrderedDict()
    for number in range(depth):
        taken = width if number else 3
        layers[f"conv{number}"] = torch.nn.Conv2d(taken, width, kernel, padding=kernel // 2, bias=False)
        layers[f"norm{number}"] = torch.nn.BatchNorm2d(width)
    layers |= {"pool": torch.nn.AdaptiveAvgPool2d(1), "flat": torch.nn.Flatten()}
    layers["fc"] = torch.nn.Linear(width, classes)
    module = torch.nn.Sequential(layers)
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return Network("test/net", module, "fc", Preprocess(size_hw=(8, 8)))


def test_the_very_same_model_inherits_everything() -> None:
    small, large = net(4, 2, seed=1), net(4, 2)
    state = large.module.state_dict()
    report = inherit(small, state, "large", with_head=True)
    assert set(report.whole) == set(state) and report.cut == report.by_shape == report.left == ()
    assert all(torch.equal(tensor, state[name]) for name, tensor in small.module.state_dict().items())


def test_a_narrower_and_shallower_one_gets_the_papers_slices_and_the_first_layers() -> None:
    small, large = net(4, 2, seed=1), net(8, 3)
    before = {name: tensor.clone() for name, tensor in small.module.state_dict().items()}
    theirs = large.module.state_dict()
    report = inherit(small, theirs, "large", with_head=False)
    ours = small.module.state_dict()
    assert torch.equal(ours["conv0.weight"], theirs["conv0.weight"][::2])
    assert torch.equal(ours["conv1.weight"], theirs["conv1.weight"][::2, ::2])
    assert torch.equal(ours["norm1.running_var"], theirs["norm1.running_var"][::2])
    assert torch.equal(ours["fc.weight"], before["fc.weight"])
    assert set(report.left) == {"fc.weight", "fc.bias"}
    assert set(report.whole) == {"norm0.num_batches_tracked", "norm1.num_batches_tracked"}
    assert report.to_json() | {"names_left": None} == {
        "source": "large", "whole": 2, "cut": 10, "by_shape": 0, "left": 2, "names_left": None}
    assert report.told() == ("12 of 14 tensors inherited from large, 10 of them chosen out of larger ones; "
                             "2 stay new (e.g. fc.weight)")


def test_the_head_of_the_same_classes_comes_along() -> None:
    small, large = net(4, 2, seed=1), net(8, 2)
    report = inherit(small, large.module.state_dict(), "large", with_head=True)
    assert torch.equal(small.module.get_parameter("fc.weight"), large.module.get_parameter("fc.weight")[:, ::2])
    assert "fc.bias" in report.whole and report.left == ()


def test_what_has_another_name_is_found_by_its_shape_and_only_once() -> None:
    small, large = net(4, 2, seed=1), net(4, 2)
    renamed = {name.replace("conv", "stage"): tensor for name, tensor in large.module.state_dict().items()}
    report = inherit(small, renamed, "large", with_head=True)
    assert set(report.by_shape) == {"conv0.weight", "conv1.weight"}
    assert torch.equal(small.module.get_parameter("conv1.weight"), renamed["stage1.weight"])
    deeper = net(4, 3, seed=1)
    report = inherit(deeper, renamed, "large", with_head=True)
    assert "conv2.weight" in report.left  # stage1, of the same shape, has gone to conv1


def test_no_part_of_a_kernel_is_taken_and_another_family_is_refused() -> None:
    with pytest.raises(EdgetlError, match=r"only 4 of its 8 tensors|cannot inherit from large: only") as refused:
        inherit(net(4, 2), {"fc.weight": torch.zeros(3, 4)}, "large", with_head=True)
    assert refused.value.hint == "Give a larger model of the student's own family."
    report = inherit(net(4, 2), net(8, 2, kernel=5).module.state_dict(), "large", with_head=True)
    assert set(report.left) == {"conv0.weight", "conv1.weight"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"student": "slim:0.5"}, r"slim:0\.5 brings its own weights, so --inherit teacher would not be read"),
        ({"weights": "w.pt"}, r"--weights w\.pt and --inherit teacher both say what the student begins with"),
    ],
)
def test_contradictions_are_one_sentence(values: dict[str, Any], says: str) -> None:
    said = {"student": "timm/test_resnet", "inherit": "teacher", "data": "d", "teacher": "t", "out": "o", **values}
    with pytest.raises(EdgetlError, match=says):
        require_heir(build(Distill, said, where="test"))


@pytest.mark.parametrize("source", ["teacher", "run", "file"])
def test_a_student_begins_where_its_teacher_is(
    photo_folder: Callable[..., Path], tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = photo_folder(classes=3, images=8)
    teacher = tiny_run.write_run(tmp_path / "teacher", photos, DataFields(data=str(photos)), steps=1)
    rundir.write_json(teacher / rundir.RUN, {**weights.read_record(teacher), "metrics": {"val": {"accuracy": 0.5}}})
    state = weights.load(teacher).network.module.state_dict()
    safetensors.torch.save_file(state, tmp_path / "large.safetensors")
    named = {"teacher": "teacher", "run": str(teacher), "file": str(tmp_path / "large.safetensors")}[source]
    begun: list[dict[str, torch.Tensor]] = []

    def kept(*given: Any) -> Network:
        network = starting_student(*given)
        begun.append({name: tensor.clone() for name, tensor in network.module.state_dict().items()})
        return network

    monkeypatch.setattr("edgetl.train.student.starting_student", kept)
    values = {
        "data": str(photos), "teacher": str(teacher), "out": str(tmp_path / "run"), "student": "timm/test_resnet",
        "inherit": named, "image_size": 32, "epochs": 1, "batch_size": "8", "workers": 0, "threads": 1,
        "control": False,
    }  # fmt: skip
    record = weights.read_record(distill(build(Distill, values, where="test")))
    equal = {name for name, tensor in begun[0].items() if torch.equal(tensor, state[name])}
    assert equal >= set(state) - {"fc.weight", "fc.bias"}
    assert ("fc.weight" in equal) == (source != "file")  # of a file nobody knows the classes
    left = 2 if source == "file" else 0
    told = record["choices"]["inherited"]
    assert (told["whole"], told["cut"], told["left"]) == (len(state) - left, 0, left)
    assert told["source"] == {"teacher": "test_resnet", "run": "teacher", "file": "large.safetensors"}[source]
    assert ("inherit sha256" in record["identity"]) == (source != "teacher")
