"""What each strategy of fine-tuning moves and what it leaves, bit for bit; how it resumes; what it refuses."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stop_at import StopAt
from torch import nn

import edgetl.train.strategies
from edgetl import models, rundir, weights
from edgetl.cli.app import main
from edgetl.errors import EdgetlError, UnknownName
from edgetl.events import Event
from edgetl.models import Network
from edgetl.recipe import Finetune, build
from edgetl.recipe_finetune import STRATEGIES
from edgetl.train import checkpoint, strategies
from edgetl.train.freezing import frozen
from edgetl.train.moving import Moves, all_but, counted, covered
from edgetl.train.stages import blocks, of_head, stages
from edgetl.train.strategies import gradual
from edgetl.train.teacher import finetune

TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "epochs": 1, "batch_size": "9",
        "workers": 0, "lr": 3e-3, "threads": 1, "ema": 0.9}  # fmt: skip
STAGES = ("conv1, bn1", "layer1", "layer2", "layer3", "layer4")  # of test_resnet


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    return photo_folder(classes=2, images=12)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A file of weights that a training begins with, so that it is known what moved."""
    torch.manual_seed(0)
    module = models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32).module
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            nn.init.normal_(layer.running_mean, std=0.1)
    torch.save(module.state_dict(), tmp_path / "start.pt")
    return tmp_path / "start.pt"


def options(data: Path, out: Path, **values: Any) -> Finetune:
    return build(Finetune, {"data": str(data), "out": str(out), **TINY, **values}, where="test")


def state_of(run: Path) -> dict[str, torch.Tensor]:
    return dict(weights.load(run).network.module.state_dict())


def changed(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def below(names: Mapping[str, Any] | set[str], *prefixes: str) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


# ------------------------------------------------------------------------------------------------------- the catalogue


def test_every_strategy_is_a_file_with_its_source_and_the_other_way_round() -> None:
    folder = Path(edgetl.train.strategies.__path__[0])
    files = {path.stem.replace("_", "-"): path for path in folder.glob("*.py") if path.stem != "__init__"}
    assert set(files) == set(STRATEGIES)
    for name, path in files.items():
        assert "arXiv:" in (ast.get_docstring(ast.parse(path.read_text())) or ""), name
        module = strategies.load(name)
        assert callable(module.start) and callable(module.fit)


def test_an_unknown_strategy_names_the_choices() -> None:
    with pytest.raises(UnknownName, match="no strategy named 'ful'"):
        strategies.load("ful")


# ------------------------------------------------------------------------------------------------------- stages


def small_resnet() -> Network:
    return models.create("timm/test_resnet", classes=2, pretrained=False, image_size=32)


def test_stages_of_timm_are_its_own_groups() -> None:
    assert tuple(stage.name for stage in stages(small_resnet())) == STAGES


def test_stages_of_other_networks_are_heard() -> None:
    network = models.create("cifar/resnet20", classes=2, pretrained=False)
    network.module.get_submodule("layer1").eval()
    assert [stage.name for stage in stages(network)] == ["conv1, bn1, layer1", "layer2", "layer3"]
    assert len(blocks(network)) == 10
    assert network.module.training and not network.module.get_submodule("layer1").training  # left as it was
    listed = [name for stage in stages(network) for name in stage.parameters]
    assert sorted([*listed, "linear.weight", "linear.bias"]) == sorted(n for n, _ in network.module.named_parameters())


@pytest.mark.parametrize(
    ("model", "count"),
    [
        ("timm/test_convnext", 5),
        ("timm/test_efficientnet", 6),
        ("timm/test_vit", 7),
        ("torchvision/mnasnet0_5", 5),
        ("torchvision/mobilenet_v3_small", 6),
        ("torchvision/shufflenet_v2_x0_5", 4),
        ("torchvision/squeezenet1_1", 4),
    ],
)
def test_each_parameter_before_the_head_is_in_one_stage_and_one_block(model: str, count: int) -> None:
    network = models.create(model, classes=2, pretrained=False, image_size=64)
    trunk = sorted(name for name, _ in network.module.named_parameters() if name not in of_head(network))
    assert len(stages(network)) == count <= len(blocks(network))
    for found in (stages(network), blocks(network)):
        assert sorted(name for one in found for name in one.parameters) == trunk
        assert all(one.name for one in found)


class Attention(nn.Module):
    """A block on tokens, as a vision transformer has them."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[N, T, 8] -> the same."""
        mixed: torch.Tensor = tokens + self.mix(tokens)
        return mixed


class Tokens(nn.Module):
    """Never shrinks; has a parameter outside of its blocks, a norm at the end, and a part that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.zeros(16, 8))
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(*(Attention() for _ in range(4)))
        self.norm = nn.LayerNorm(8)
        self.aside = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[N, 3, 16, 16] -> [N, 2]."""
        tokens = self.blocks(self.patch(images).flatten(2).transpose(1, 2) + self.position)
        logits: torch.Tensor = self.head(self.norm(tokens).mean(1))
        return logits


def test_a_network_that_never_shrinks_has_a_stage_for_each_block() -> None:
    resnet = small_resnet()
    network = Network("own/tokens", Tokens(), "head", models.resized(resnet, 16).preprocess)
    names = [stage.name for stage in stages(network)]
    assert names == ["position, patch", "blocks.0", "blocks.1", "blocks.2", "blocks.3, norm, aside"]


# ------------------------------------------------------------------------------------------------------- freezing


@pytest.mark.parametrize(
    ("patterns", "prefixes"),
    [
        (("stages:2",), ("conv1", "bn1", "layer1")),
        (("layer1",), ("layer1",)),
        (("layer[12]", "bn1"), ("layer1", "layer2", "bn1")),
        (("layer2.0.conv1.weight",), ("layer2.0.conv1.weight",)),
        (("stages:5",), ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")),
    ],
)
def test_freeze_matches_modules_parameters_and_stages(patterns: tuple[str, ...], prefixes: tuple[str, ...]) -> None:
    network = small_resnet()
    names = {name for name, _ in network.module.named_parameters()}
    assert frozen(network, patterns) == below(names, *prefixes)


@pytest.mark.parametrize(
    ("pattern", "says", "hint"),
    [
        ("layr1", "matches no module and no parameter of timm/test_resnet", "layer1"),
        ("zzz*", "matches no module", "stages:N for the first N of: 1: conv1, bn1; 2: layer1"),
        ("*", "holds all of timm/test_resnet", "probe"),
        ("fc", r"holds the head, too \(fc.bias, fc.weight\)", "before the head"),
        ("*.bias", r"holds the head, too \(fc.bias\)", "before the head"),
        ("stages:6", "has 5 stages, expected a number from 1 to 5", "5: layer4"),
        ("stages:0", "expected a number from 1 to 5", "1: conv1, bn1"),
    ],
)
def test_what_cannot_be_frozen_is_said(pattern: str, says: str, hint: str) -> None:
    with pytest.raises(EdgetlError, match=says) as caught:
        frozen(small_resnet(), (pattern,))
    assert hint in (caught.value.hint or "")


def test_what_is_frozen_is_told_by_the_topmost_names() -> None:
    module = small_resnet().module
    names = [name for name, _ in module.named_parameters() if name.startswith(("layer1", "conv1", "layer2.0.bn1.w"))]
    assert set(covered(module, names)) == {"conv1", "layer1", "layer2.0.bn1.weight"}
    told = counted(module, {"fc.weight"})
    assert told["parameters_moved"] == module.get_parameter("fc.weight").numel()
    assert told["parameters_moved"] + told["parameters_frozen"] == sum(one.numel() for one in module.parameters())
    assert "fc.bias" in told["frozen"] and "layer4" in told["frozen"]


def test_a_frozen_part_is_in_evaluation_mode_and_what_moves_is_not() -> None:
    module = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()), nn.Sequential(
        nn.Linear(2, 2), nn.BatchNorm1d(2)), nn.Dropout())  # fmt: skip
    moves = all_but(module, {"0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias", "1.0.weight", "1.0.bias"})
    moves.begin(module.train(), 0)
    assert [module.get_submodule(path).training for path in ("0.0", "0.1", "0.2", "1.0", "1.1", "2")] == [
        False, False, False, False, True, True]  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 100))
def test_groups_are_set_free_in_order_and_all_of_them(count: int, epochs: int) -> None:
    begins = [gradual.begin_of(place, count, epochs) for place in range(count)]
    assert begins[0] == 0 and begins == sorted(begins) and begins[-1] < epochs
    moves = Moves({str(place): first for place, first in enumerate(begins)})
    assert moves.at(epochs - 1) == moves.at(None) == {str(place) for place in range(count)}


# ------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("more", [{}, {"l2_sp": 0.1, "wise_ft": True, "layer_decay": 0.8, "mixup": 0.2}])
def test_partial_leaves_what_is_frozen_bit_for_bit(
    photos: Path, start: Path, tmp_path: Path, more: dict[str, Any]
) -> None:
    told: list[str] = []
    held = ("stages:2", "layer3.0.bn1")
    run = finetune(
        options(photos, tmp_path / "run", weights=str(start), strategy="partial", freeze=held, **more),
        listener=lambda event: told.append(str(event.values.get("text"))),
    )
    before, after = torch.load(start, weights_only=True), state_of(run)
    still = below(before, "conv1", "bn1", "layer1", "layer3.0.bn1")  # batch norm's statistics included
    record = weights.read_record(run)
    if record.get("wise_ft", {}).get("alpha") != 0:  # at 0 it is the start again, but for the head
        assert changed(before, after) == set(before) - still
    assert not changed(before, after) & still
    assert record["strategy"] == "partial"
    assert record["moved"]["frozen"] == ["conv1", "bn1", "layer1", "layer3.0.bn1"]
    assert any("of the parameters move" in text and "layer3.0.bn1" in text for text in told)


def test_gradual_sets_stages_free_one_after_the_other_and_resumes_there(
    photos: Path, start: Path, tmp_path: Path
) -> None:
    """Four groups in two epochs: the head and layer4, then layer3 and layer2; the first two stages never move."""
    values = {"weights": str(start), "strategy": "gradual", "freeze": ("stages:2",), "epochs": 2, "ema": 0.0,
              "l2_sp": 0.01, "layer_decay": 0.9}  # fmt: skip
    whole = finetune(options(photos, tmp_path / "whole", **values))
    steps = 2  # of an epoch
    with pytest.raises(ZeroDivisionError):
        finetune(options(photos, tmp_path / "broken", **values), listener=StopAt(steps + 1, ZeroDivisionError()))
    before = torch.load(start, weights_only=True)
    kept = checkpoint.read(rundir.partial(tmp_path / "broken") / rundir.CHECKPOINT)
    assert kept.scalars["progress"]["epoch"] == 1
    first = changed(before, kept.part("model"))
    assert first == below(before, "fc", "layer4")  # no statistics of the others either
    resumed = finetune(options(photos, tmp_path / "broken", **values, resume=True))
    assert (resumed / rundir.MODEL).read_bytes() == (whole / rundir.MODEL).read_bytes()
    record = weights.read_record(whole)
    assert record["unfrozen"] == [{"stage": "fc", "epoch": 1}, {"stage": "layer4", "epoch": 1},
                                  {"stage": "layer3", "epoch": 2}, {"stage": "layer2", "epoch": 2}]  # fmt: skip
    assert record["moved"]["frozen"] == ["conv1", "bn1", "layer1"]


def test_gradual_moves_in_its_last_epoch_what_it_set_free_then() -> None:
    """On the task itself, since a training keeps its best weights, which may be those of an earlier epoch."""
    from edgetl.losses import parse
    from edgetl.train.task import ClassifierTask

    network = small_resnet()
    moves = Moves({"fc.weight": 0, "fc.bias": 0, "layer4.0.conv1.weight": 1})
    task = ClassifierTask(network, parse(["labels"]), moves=moves)
    assert {name for name, _ in task.trained()} == {f"network.{name}" for name in moves.begins}
    for epoch, wanted in ((0, {"fc.weight", "fc.bias"}), (1, set(moves.begins)), (None, set(moves.begins))):
        task.train_mode(epoch)
        assert {name for name, one in network.module.named_parameters() if one.requires_grad} == wanted
        assert network.module.get_submodule("fc").training
        assert not network.module.get_submodule("layer3.0.bn1").training


def test_early_stopping_waits_until_all_is_free(photos: Path, start: Path, tmp_path: Path) -> None:
    """Nothing gets better with a rate of 0: other strategies stop after the second epoch."""
    values = {"weights": str(start), "strategy": "gradual", "freeze": ("stages:2",), "epochs": 4, "ema": 0.0, "lr": 0.0,
              "patience": 1}  # fmt: skip
    run = finetune(options(photos, tmp_path / "run", **values))
    assert weights.read_record(run)["unfrozen"][-1]["epoch"] == 4
    assert len((run / rundir.METRICS).read_text().splitlines()) == 4


def test_several_processes_compute_gradients_that_do_not_count_yet_and_drop_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from edgetl.losses import parse
    from edgetl.train import distributed
    from edgetl.train.task import ClassifierTask

    monkeypatch.setattr(distributed, "_current", [distributed.World(size=2)])
    network = small_resnet()
    task = ClassifierTask(network, parse(["labels"]), moves=Moves({"fc.weight": 0, "fc.bias": 1}))
    task.train_mode(0)
    network.module(torch.zeros(2, 3, 32, 32)).sum().backward()
    task.drop_gradients()
    assert {name for name, one in network.module.named_parameters() if one.grad is not None} == {"fc.weight"}
    task.train_mode(1)
    network.module(torch.zeros(2, 3, 32, 32)).sum().backward()
    task.drop_gradients()
    assert network.module.get_parameter("fc.bias").grad is not None


def test_lp_ft_holds_what_is_frozen_in_both_halves(photos: Path, start: Path, tmp_path: Path) -> None:
    run = finetune(options(photos, tmp_path / "run", weights=str(start), strategy="lp-ft", freeze=("stages:4",)))
    before, after = torch.load(start, weights_only=True), state_of(run)
    assert changed(before, after) == below(before, "layer4", "fc")


def test_scratch_takes_no_weights_and_says_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Any]] = []
    create = models.create

    def spied(model: str, **values: Any) -> Network:
        seen.append(values)
        return create(model, **values)

    monkeypatch.setattr(models, "create", spied)
    told: list[str] = []

    def listener(event: Event) -> None:
        told.append(str(event.values.get("text")))

    run = finetune(options(photos, tmp_path / "run", pretrained=True, strategy="scratch", lr=0.0), listener=listener)
    assert seen[0]["pretrained"] is False and seen[0].get("weights") is None
    record = weights.read_record(run)
    assert record["strategy"] == "scratch" and record["weights"]["source"] == "scratch"
    assert record["moved"]["parameters_frozen"] == 0
    assert any("no pretrained weights" in text for text in told)
    head = state_of(run)["fc.weight"]
    assert head.std() > 0.02  # as the family draws it, not the quiet head of a pretrained network


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize(
    ("values", "moving"),
    [
        ({"strategy": "partial", "freeze": ("stages:3",)}, ("layer3", "layer4", "fc")),
        ({"strategy": "gradual", "freeze": ("stages:2",), "epochs": 2}, ("layer2", "layer3", "layer4", "fc")),
        ({"strategy": "joint", "freeze": ("stages:4",)}, ("layer4", "fc")),
    ],
)
def test_a_gpu_moves_the_same(
    photos: Path, start: Path, tmp_path: Path, values: dict[str, Any], moving: tuple[str, ...], amp: str
) -> None:
    joined = {"source": str(photos)} if values["strategy"] == "joint" else {}
    run = finetune(options(photos, tmp_path / "run", weights=str(start), device="cuda", amp=amp, **values, **joined))
    before, after = torch.load(start, weights_only=True), state_of(run)
    assert changed(before, after) <= below(before, *moving)
    assert changed(before, after) & below(before, "fc")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU here")
@pytest.mark.parametrize("width", [0, 8])
def test_a_gpu_copies_the_same_features(photos: Path, tmp_path: Path, width: int) -> None:
    values = {"strategy": "feature-copy", "features_from": "cifar/resnet20", "head_width": width, "amp": "off"}
    on_cpu, on_gpu = (finetune(options(photos, tmp_path / device, device=device, **values)) for device in
                      ("cpu", "cuda"))  # fmt: skip
    accuracy = [weights.read_record(run)["metrics"]["val"]["accuracy"] for run in (on_cpu, on_gpu)]
    assert accuracy[0] == pytest.approx(accuracy[1], abs=0.1)


# ------------------------------------------------------------------------------------------------------- refused


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["finetune", *arguments])
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--freeze", "layer1"], "--freeze does nothing with --strategy full."),
        (["--strategy", "probe", "--freeze", "layer1"], "--freeze does nothing with --strategy probe."),
        (["--strategy", "partial"], "--strategy partial needs --freeze"),
        (["--strategy", "partial", "--freeze", "layr1"], "--freeze 'layr1' matches no module"),
        (["--strategy", "gradual", "--freeze", "*"], "--freeze '*' holds all of timm/test_resnet"),
        (["--strategy", "scratch", "--weights", "START"], "--strategy scratch starts from no weights, and --weights"),
    ],
)
def test_a_contradiction_is_one_sentence(
    extra: list[str], says: str, photos: Path, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [str(start) if word == "START" else word for word in extra]
    code, text = said(
        ["--data", str(photos), "--teacher", "timm/test_resnet", "--no-pretrained", "--image-size", "32", "--out",
         str(tmp_path / "run"), *words], capsys)  # fmt: skip
    assert code == 1 and says in text and "hint" in text.lower()
    assert not (tmp_path / "run").exists()


def test_scratch_from_a_run_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "earlier").mkdir()
    (tmp_path / "earlier" / rundir.RUN).write_text("{}")
    with pytest.raises(EdgetlError, match="starts from no weights, and the RUN"):
        strategies.require(options(photos, tmp_path / "run", strategy="scratch", teacher=str(tmp_path / "earlier")))


def test_an_unknown_strategy_is_wrong_usage(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, text = said(["--data", str(photos), "--teacher", "x/y", "--out", str(tmp_path / "o"), "--strategy", "all"],
                      capsys)  # fmt: skip
    assert code == 2 and "gradual" in text


def test_the_list_says_what_each_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "strategies"]) == 0
    shown = capsys.readouterr().out
    assert all(f"{name} " in shown and one.summary in shown for name, one in STRATEGIES.items())
