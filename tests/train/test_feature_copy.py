"""Features of several frozen networks under one small head: what moves, what it is loaded and exported as, refusals."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from edgetl import models, plugins, rundir, weights
from edgetl.cli.app import main
from edgetl.errors import EdgetlError, TrainingError
from edgetl.models import Network
from edgetl.recipe import Finetune, build
from edgetl.runtime.preprocess import Preprocess, normalize
from edgetl.train import small_head
from edgetl.train.teacher import finetune

joined: Any = plugins.load("models", "joined")

TINY = {"teacher": "timm/test_resnet", "pretrained": False, "image_size": 32, "threads": 1, "strategy": "feature-copy"}
BOTH = "joined/timm/test_resnet+timm/test_vit"


@pytest.fixture
def photos(photo_folder: Callable[..., Path]) -> Path:
    return photo_folder(classes=3, images=12)


def options(data: Path, out: Path, **values: Any) -> Finetune:
    return build(Finetune, {"data": str(data), "out": str(out), **TINY, **values}, where="test")


def member(model: str, size: int = 32) -> Network:
    return models.create(model, classes=4, pretrained=False, image_size=size)


def fed(network: Network, pixels: np.ndarray[Any, Any]) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = network.module.eval()(torch.from_numpy(normalize(pixels, network.preprocess)))
    return found


def test_each_member_sees_the_image_as_it_wants_it() -> None:
    """Lite networks want (p - 127) / 128, those of timm ImageNet's mean and deviation."""
    first, second = member("timm/test_resnet"), member("cifar/resnet20")
    other = Preprocess(size_hw=(32, 32), scale=1.0, mean=(127.0, 120.0, 90.0), std=(128.0, 64.0, 32.0))
    second = dataclasses.replace(second, preprocess=other)
    for one in (first, second):  # features are what their heads are given
        one.module.set_submodule(one.head, nn.Identity())
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    apart = torch.cat([fed(first, pixels), fed(second, pixels)], dim=1)
    both = joined.assembled([first, second], classes=5, hidden=0)
    caught: list[torch.Tensor] = []
    both.module.get_submodule(both.head).register_forward_pre_hook(lambda _, given: caught.append(given[0]))
    assert fed(both, pixels).shape == (3, 5)
    torch.testing.assert_close(caught[0], apart, rtol=1e-4, atol=1e-4)
    assert both.preprocess == first.preprocess and both.model == "joined/timm/test_resnet+cifar/resnet20"


@pytest.mark.parametrize("width", [0, 8])
def test_only_the_head_is_new_and_the_run_is_loaded_as_it_was(photos: Path, tmp_path: Path, width: int) -> None:
    run = finetune(options(photos, tmp_path / "run", features_from="timm/test_vit", head_width=width))
    record = weights.read_record(run)
    assert record["model"] == BOTH + (f";hidden={width}" if width else "")
    assert record["strategy"] == "feature-copy"
    assert record["moved"]["frozen"] == ["members"]
    loaded = weights.load(run)
    state = loaded.network.module.state_dict()
    outputs = loaded.network.module.get_submodule("classifier")
    assert isinstance(outputs, nn.Linear) and (outputs.out_features, outputs.in_features) == (3, width or 96 + 64)
    torch.manual_seed(0)  # as `finetune` draws the members' weights with seed 0
    known = {f"members.0.{name}": one for name, one in member_of_run().state_dict().items() if "fc." not in name}
    assert known and all(torch.equal(state[name], one) for name, one in known.items())
    assert record["metrics"]["val"]["accuracy"] > 0.5  # colours tell these photos apart


def member_of_run() -> nn.Module:
    return models.create("timm/test_resnet", classes=3, pretrained=False, image_size=32).module


def test_a_run_can_be_a_member_and_its_features_come_along(photos: Path, tmp_path: Path) -> None:
    earlier = finetune(options(photos, tmp_path / "earlier", strategy="full", epochs=1, batch_size="9", workers=0))
    values = {"teacher": "timm/test_vit", "features_from": f"{earlier}, cifar/resnet20"}
    run = finetune(options(photos, tmp_path / "run", **values))
    before, after = (weights.load(path).network.module.state_dict() for path in (earlier, run))
    kept = [name for name in before if not name.startswith("fc.")]
    assert all(torch.equal(before[name], after[f"members.1.{name}"]) for name in kept)
    other = finetune(options(photos, tmp_path / "other", strategy="full", epochs=1, batch_size="9", workers=0, seed=1))
    (earlier / rundir.MODEL).write_bytes((other / rundir.MODEL).read_bytes())
    for named in (values["features_from"], str(earlier), None):
        with pytest.raises(TrainingError, match="features from was"):
            finetune(options(photos, tmp_path / "run", **{**values, "features_from": named}, resume=True))


def test_the_same_seed_gives_the_same_head(photos: Path, tmp_path: Path) -> None:
    one, two = (
        finetune(options(photos, tmp_path / name, features_from="timm/test_vit", head_width=4)) for name in "ab"
    )
    assert (one / rundir.MODEL).read_bytes() == (two / rundir.MODEL).read_bytes()


def test_it_is_exported_with_parity(photos: Path, tmp_path: Path) -> None:
    import onnxruntime

    from edgetl.export import graph

    run = finetune(options(photos, tmp_path / "run", features_from="cifar/resnet20", head_width=4))
    loaded = weights.load(run)
    exported = graph.export(loaded.network, loaded.labels)
    session = onnxruntime.InferenceSession(exported.graph, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    images = normalize(pixels, loaded.network.preprocess)
    (said,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(said, fed(loaded.network, pixels).numpy(), rtol=1e-3, atol=1e-4)


def test_a_hidden_layer_learns_what_no_linear_head_can() -> None:
    rng = np.random.default_rng(0)
    features = torch.from_numpy(rng.normal(size=(400, 2)).astype(np.float32))
    labels = (features[:, 0] * features[:, 1] > 0).long()  # the two diagonals
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
    score = small_head.trained(head, (features[:300], labels[:300]), (features[300:], labels[300:]), rng)
    assert score.accuracy > 0.85


def test_another_image_size_reaches_the_members() -> None:
    both = joined.assembled([member("timm/test_resnet"), member("timm/test_vit")], classes=2, hidden=0)
    other = models.resized(both, 48)
    assert other.module(torch.zeros(1, 3, 48, 48)).shape == (1, 2)


def test_what_cannot_be_joined_is_said() -> None:
    two = [member("timm/test_resnet"), member("cifar/resnet20")]
    both = joined.assembled(two, classes=2, hidden=0)
    with pytest.raises(EdgetlError, match=r"joined/timm/test_resnet.cifar/resnet20 cannot be joined"):
        joined.assembled([both], classes=2, hidden=0)
    blue = member("cifar/resnet20")
    blue = dataclasses.replace(blue, preprocess=dataclasses.replace(blue.preprocess, color="bgr"))
    with pytest.raises(EdgetlError, match="wants bgr images of 32 px and timm/test_resnet rgb"):
        joined.assembled([member("timm/test_resnet"), blue], classes=2, hidden=0)
    with pytest.raises(EdgetlError, match="does not say which networks are joined"):
        models.create("joined/a+", classes=2)
    with pytest.raises(EdgetlError, match="no single file of weights"):
        models.create(BOTH, classes=2, weights=Path("x"))


def test_joined_networks_are_not_cut() -> None:
    from edgetl.compress.prune import require_cuttable

    both = joined.assembled([member("timm/test_resnet"), member("cifar/resnet20")], classes=2, hidden=0)
    with pytest.raises(EdgetlError, match="several networks side by side, of which no part is cut"):
        require_cuttable(both)


def test_a_name_in_a_run_imports_nobodys_module() -> None:
    with pytest.raises(EdgetlError, match="what a file names is not imported"):
        models.create("joined/os.path/x+timm/test_resnet", classes=2, pretrained=False, foreign=False)


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        (["--features-from", "timm/test_resnett"], "test_resnet"),
        (["--strategy", "full", "--features-from", "timm/test_vit"], "--features-from does nothing with"),
        (["--strategy", "probe", "--head-width", "8"], "--head-width does nothing with --strategy probe"),
        (["--freeze", "stages:1"], "--freeze does nothing with --strategy feature-copy"),
    ],
)
def test_a_contradiction_is_said(
    extra: list[str], says: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["finetune", "--data", str(photos), "--teacher", "timm/test_resnet", "--no-pretrained", "--image-size",
                 "32", "--out", str(tmp_path / "run"), "--strategy", "feature-copy", *extra])  # fmt: skip
    assert code == 1 and says in capsys.readouterr().err
