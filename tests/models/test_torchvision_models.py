"""torchvision's classifiers: every family's head, sizes, preprocessing and weights; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision
from torch import nn

from edgetl import models, weights
from edgetl.errors import EdgetlError, UnknownName
from edgetl.models import torchvision as zoo
from edgetl.recipe import Finetune
from edgetl.recipe import build as recipe
from edgetl.runtime.geometry import fit
from edgetl.runtime.preprocess import Preprocess, prepare
from edgetl.train.teacher import finetune

# Family -> its cheapest architecture, the smallest image that it takes, and the name of its head.
HEADS = {
    "alexnet": ("alexnet", 63, "classifier.6"),
    "convnext": ("convnext_tiny", 32, "classifier.2"),
    "densenet": ("densenet121", 29, "classifier"),
    "efficientnet": ("efficientnet_b0", 1, "classifier.1"),
    "googlenet": ("googlenet", 15, "fc"),
    "inception": ("inception_v3", 75, "fc"),
    "maxvit": ("maxvit_t", 224, "classifier.5"),
    "mnasnet": ("mnasnet0_5", 1, "classifier.1"),
    "mobilenetv2": ("mobilenet_v2", 1, "classifier.1"),
    "mobilenetv3": ("mobilenet_v3_small", 1, "classifier.3"),
    "regnet": ("regnet_y_400mf", 1, "fc"),
    "resnet": ("resnet18", 1, "fc"),
    "shufflenetv2": ("shufflenet_v2_x0_5", 1, "fc"),
    "squeezenet": ("squeezenet1_1", 17, "classifier.1"),
    "swin_transformer": ("swin_t", 32, "head"),
    "vgg": ("vgg11", 32, "classifier.6"),
    "vision_transformer": ("vit_b_32", 32, "heads.head"),
}


def test_the_table_of_heads_has_every_family_of_torchvision() -> None:
    assert set(HEADS) == {zoo.family(variant) for variant in zoo.variants()}
    assert len(zoo.variants()) >= 80


@pytest.mark.parametrize("family", HEADS)
def test_a_family_is_built_with_a_head_of_its_own(family: str) -> None:
    """On the meta device where the family can be built there: no memory, no weights."""
    variant, size, head = HEADS[family]
    with torch.device("cpu" if family == "regnet" else "meta"):
        network = models.create(f"torchvision/{variant}", classes=5, pretrained=False, image_size=size)
        assert network.module.eval()(torch.zeros(1, 3, size, size)).shape == (1, 5)
        assert network.module.train()(torch.zeros(2, 3, size, size)).shape == (2, 5), "auxiliary outputs"
    layer = network.module.get_submodule(network.head)
    assert network.head == head and isinstance(layer, nn.Linear | nn.Conv2d) and layer.bias is not None


@pytest.mark.parametrize("variant", zoo.variants())
def test_preprocessing_is_that_of_the_published_weights(variant: str) -> None:
    for published in torchvision.models.get_model_weights(variant):
        transforms = published.transforms()
        (crop,), (resize,) = transforms.crop_size, transforms.resize_size
        wants = zoo.preprocess_of(published, crop, zoo.family(variant))
        found = fit(1000, 1500, wants)  # of an image of 1500 x 1000
        assert min(found.inner_hw) == resize and wants.size_hw == (crop, crop), published
        assert wants.interpolation == transforms.interpolation.value
        if zoo.family(variant) not in zoo.CENTRED:
            assert (wants.mean, wants.std) == (tuple(transforms.mean), tuple(transforms.std))


@pytest.mark.parametrize(("variant", "size"), [("googlenet", 64), ("inception_v3", 75)])
def test_the_inceptions_own_normalisation_is_in_the_preprocessing(variant: str, size: int) -> None:
    """torchvision's network takes ImageNet's normalisation and changes it inside; edgetl's takes what comes out."""
    network = models.create(f"torchvision/{variant}", classes=1000, pretrained=False, image_size=size)
    theirs = torchvision.models.get_model(
        variant, weights=None, transform_input=True, aux_logits=False, init_weights=False
    )
    theirs.load_state_dict(network.module.state_dict())
    pixels = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    imagenet = torchvision.models.get_model_weights(variant).DEFAULT.transforms()

    def normal(mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
        return (pixels - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)

    with torch.inference_mode():
        expected = theirs.eval()(normal(imagenet.mean, imagenet.std))
        found = network.module.eval()(normal(network.preprocess.mean, network.preprocess.std))
    assert torch.allclose(expected, found, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(
    ("variant", "size", "says"),
    [
        ("vit_b_16", 100, "pieces of 16 px, found an image size of 100 px"),
        ("maxvit_t", 128, "pieces of 224 px, found an image size of 128 px"),
        ("alexnet", 48, "takes images of 63 px and more, found 48 px"),
        ("inception_v3", 64, "takes images of 75 px and more, found 64 px"),
        ("swin_v2_t", 16, "takes images of 32 px and more, found 16 px"),
    ],
)
def test_a_size_that_an_architecture_does_not_take_is_one_sentence(variant: str, size: int, says: str) -> None:
    with pytest.raises(EdgetlError, match=says) as caught:
        models.create(f"torchvision/{variant}", classes=2, pretrained=False, image_size=size)
    assert "--image-size" in str(caught.value.hint)


def vit(size: int) -> nn.Module:
    return torchvision.models.VisionTransformer(size, patch_size=8, num_layers=1, num_heads=1, hidden_dim=8, mlp_dim=8)


def test_position_embeddings_are_interpolated_and_old_names_understood() -> None:
    source, target = vit(32), vit(64)
    with torch.no_grad():  # a ramp from left to right: what is interpolated stays one
        source.encoder.pos_embedding[0, 1:] = torch.arange(4.0).repeat(4)[:, None]
    state = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): tensor
        for name, tensor in source.state_dict().items()
    }
    report = zoo.load(target, state, source="file")
    assert report.missing == report.unexpected == report.mismatched == ()
    assert report.reasons == ("encoder.pos_embedding was interpolated from 16 to 64 patches",)
    rows = target.encoder.pos_embedding[0, 1:, 0].reshape(8, 8)
    assert torch.allclose(rows, rows[0].expand(8, 8), atol=1e-5) and bool((rows[0].diff() > 0).all())
    assert torch.equal(target.encoder.pos_embedding[0, 0], source.encoder.pos_embedding[0, 0])
    assert torch.equal(target.state_dict()["encoder.layers.encoder_layer_0.mlp.3.weight"],
                       source.state_dict()["encoder.layers.encoder_layer_0.mlp.3.weight"])


def test_a_trained_vision_transformer_takes_images_of_another_size(monkeypatch: pytest.MonkeyPatch) -> None:
    module = vit(32).eval()
    nn.init.normal_(module.heads.head.weight)
    monkeypatch.setattr(zoo, "require_size", lambda *_: None)  # its patches are none of torchvision's
    network = models.Network("torchvision/vit_b_16", module, "heads.head", Preprocess(size_hw=(32, 32)))
    images = torch.rand(1, 3, 32, 32)
    before = module(images).detach()
    wide = models.resized(network, 64)
    assert wide.preprocess.size_hw == (64, 64) and module(torch.rand(2, 3, 64, 64)).shape == (2, 1000)
    zoo.resize("vit_b_16", module, 32)  # and back: twice as fine and averaged again is nearly the same
    assert float((module(images).detach() - before).norm() / before.norm()) < 0.1


def test_sizes_that_a_trained_network_cannot_take_are_one_sentence() -> None:
    with torch.device("meta"):
        maxvit = models.create("torchvision/maxvit_t", classes=2, pretrained=False)
    assert models.resized(maxvit, 224) is maxvit
    with pytest.raises(EdgetlError, match="cannot be changed to 448 px once it is trained"):
        models.resized(maxvit, 448)
    squeezenet = models.create("torchvision/squeezenet1_1", classes=2, pretrained=False)
    assert models.resized(squeezenet, 32).preprocess.size_hw == (32, 32)
    with pytest.raises(EdgetlError, match="takes images of 17 px and more, found 16 px"):
        models.resized(squeezenet, 16)
    vit_of_timm = models.create("timm/test_vit", classes=2, pretrained=False, image_size=32)
    assert models.resized(vit_of_timm, 64).module(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    with pytest.raises(EdgetlError, match="pieces of 16 px, found an image size of 72 px"):
        models.resized(vit_of_timm, 72)
    with pytest.raises(EdgetlError, match="pieces of 16 px, found an image size of 72 px"):
        models.create("timm/test_vit", classes=2, pretrained=False, image_size=72)


def test_positions_that_are_no_square_are_refused() -> None:
    with pytest.raises(EdgetlError, match="has 16 rows, expected a class token and a square of patches"):
        zoo.interpolated(torch.zeros(1, 16, 8), 17)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, dict[str, torch.Tensor]], None]:
    """Puts a state dict where torch keeps the published weights of an architecture that it downloaded."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def put(variant: str, state: dict[str, torch.Tensor]) -> None:
        file = Path(torchvision.models.get_model_weights(variant).DEFAULT.url).name
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / file)

    return put


Put = Callable[[str, dict[str, torch.Tensor]], None]


def test_published_densenet_has_its_old_names_read(published: Put) -> None:
    source = torchvision.models.densenet121(num_classes=1000).state_dict()
    old = {}
    for name, tensor in source.items():
        for layer in ("norm", "conv"):
            for number in "12":
                name = name.replace(f".{layer}{number}.", f".{layer}.{number}.")
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    published("densenet121", old)
    network = models.create("torchvision/densenet121", classes=3)
    assert network.weights.missing == network.weights.unexpected == ()
    assert network.weights.mismatched == ("classifier.weight", "classifier.bias")
    assert network.weights.source == "torchvision: DenseNet121_Weights.IMAGENET1K_V1"
    found = network.module.state_dict()
    assert all(torch.equal(found[name], source[name]) for name in source if not name.startswith("classifier"))


def test_the_auxiliary_heads_of_published_weights_are_left_out_and_told_of(published: Put) -> None:
    with_heads = torchvision.models.googlenet(aux_logits=True, init_weights=False).state_dict()
    published("googlenet", with_heads)
    network = models.create("torchvision/googlenet", classes=3, image_size=64)
    count = sum(name.startswith(("aux1.", "aux2.")) for name in with_heads)
    assert network.weights.unexpected == network.weights.missing == ()
    assert network.weights.reasons[0] == f"the {count} tensors of the auxiliary heads were left out"
    assert "fc.weight is [1000, 1024] in the file and [3, 1024] in the model" in network.weights.reasons
    assert not any("aux" in name.lower() for name in network.module.state_dict())


def test_the_published_head_stays_where_it_fits(published: Put) -> None:
    source = torchvision.models.squeezenet1_1().state_dict()
    published("squeezenet1_1", source)
    network = models.create("torchvision/squeezenet1_1.IMAGENET1K_V1", classes=1000)
    assert network.weights.mismatched == () and "classifier.1.weight" in network.weights.matched
    assert torch.equal(network.module.state_dict()["classifier.1.weight"], source["classifier.1.weight"])


def test_weights_that_are_not_published_list_those_that_are() -> None:
    with pytest.raises(UnknownName, match=r"no set of weights for torchvision/resnet50 named .*V2"):
        models.create("torchvision/resnet50.IMAGENET1K_V3", classes=2)


def test_weights_that_cannot_be_had_are_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def no_network(*_: object, **__: object) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("torch.hub.download_url_to_file", no_network)
    with pytest.raises(EdgetlError, match=r"published weights of torchvision/squeezenet1_1 cannot be had") as caught:
        models.create("torchvision/squeezenet1_1", classes=2)
    assert "--weights FILE" in str(caught.value.hint)


def test_a_file_with_a_head_that_fits_brings_it_along(tmp_path: Path) -> None:
    trained = models.create("torchvision/shufflenet_v2_x0_5", classes=4, pretrained=False).module.state_dict()
    safetensors.torch.save_file(trained, tmp_path / "w.safetensors")
    network = models.create("torchvision/shufflenet_v2_x0_5", classes=4, weights=tmp_path / "w.safetensors")
    assert network.weights.mismatched == () and torch.equal(network.module.state_dict()["fc.weight"],
                                                            trained["fc.weight"])
    other = models.create("torchvision/shufflenet_v2_x0_5", classes=3, weights=tmp_path / "w.safetensors")
    assert set(other.weights.mismatched) == {"fc.weight", "fc.bias"}


def test_mnasnet_is_saved_and_read_again(tmp_path: Path) -> None:
    """Its class refuses tensors without the version that only torch's own files carry."""
    network = models.create("torchvision/mnasnet0_5", classes=3, pretrained=False, image_size=32)
    weights.save(tmp_path, network, {"labels": ["a", "b", "c"]})
    again = weights.load(tmp_path).network.module.state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in network.module.state_dict().items())


PhotoFolder = Callable[..., Path]


def test_a_probe_of_squeezenet_is_the_linear_model_it_fitted(photo_folder: PhotoFolder, tmp_path: Path) -> None:
    """Its head is a convolution whose negative values are cut off before the mean: nothing may be cut off."""
    values = {"teacher": "torchvision/squeezenet1_1", "pretrained": False, "image_size": 32, "strategy": "probe"}
    data = photo_folder(classes=2, images=12)
    options = recipe(Finetune, {"data": str(data), "out": str(tmp_path / "run"), "batch_size": "8", "workers": 0,
                                "threads": 1, **values}, where="test")
    notes: list[str] = []
    run = weights.load(finetune(options, listener=lambda event: notes.append(str(event.values.get("text", "")))))
    (said,) = [note for note in notes if note.startswith("linear probe")]
    assert said.endswith(f" {100 * run.record['metrics']['val']['accuracy']:.1f} %")
    head = run.network.module.get_submodule("classifier.1")
    photo = prepare(next(data.rglob("*.png")), run.network.preprocess)[None]
    seen: list[torch.Tensor] = []
    head.register_forward_hook(lambda _, inputs, output: seen.extend((inputs[0].clone(), output.clone())))
    with torch.inference_mode():
        logits = run.network.module(torch.from_numpy(photo))
    features, before = seen
    assert isinstance(head, nn.Conv2d) and head.bias is not None and float(before.min()) > 0
    linear = features.mean((2, 3)) @ head.weight.flatten(1).T + head.bias
    assert torch.allclose(logits, linear, rtol=1e-4)
