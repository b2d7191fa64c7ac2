"""A RUN of a tiny network that has learned its photos, made without the training stage."""

from __future__ import annotations

from pathlib import Path

from edgetl import datasets, evaluate, models, splits, weights
from edgetl.recipe_fields import DataFields


def write_run(folder: Path, photos: Path, options: DataFields, *, steps: int) -> Path:
    """`folder` with a network of three classes, trained for so many steps on all training photos at once."""
    import torch

    data = datasets.open_data(str(photos))
    parts = splits.resolve(data, options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the same network in every run of the tests
        network = models.create("timm/test_resnet", classes=3, pretrained=False, image_size=32)
    images, labels, _ = next(evaluate.prepared(parts.train, data.read, network.preprocess, len(parts.train)))
    adam = torch.optim.Adam(network.module.parameters(), 1e-2)
    network.module.train()
    for _ in range(steps):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(network.module(torch.from_numpy(images)), torch.from_numpy(labels)).backward()
        adam.step()
    folder.mkdir()
    weights.save(folder, network, {"labels": list(data.labels), "stage": "finetune", "data": {
        "source": str(photos), "name": data.name, "fingerprint": parts.fingerprint, "rule": dict(parts.rule),
        "notes": ["photos made by a test"]}})
    return folder
