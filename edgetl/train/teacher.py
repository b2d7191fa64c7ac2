"""Fine-tuning: a pretrained network on the user's own images."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from edgetl import weights
from edgetl.allocator import set_allocator
from edgetl.events import Listener, ignore
from edgetl.recipe import Finetune
from edgetl.train import beforehand, choosing, distributed, objective, seed, setting, strategies, tta
from edgetl.train.setting import Setting


def finetune(
    options: Finetune, *, listener: Listener = ignore, arranged: setting.Arranged | None = None
) -> Path:
    """The RUN folder of a network fine-tuned as the options say.

    Args:
        options: the recipe.
        listener: told how it goes.
        arranged: makes other splits of the data's own, see `setting.prepare`.

    Raises:
        DataError, UnknownName, OutputError, TrainingError: see the sentences.
        EdgetlError: the teacher is a RUN and --weights is given, or an option that the strategy does not read.
        KeyboardInterrupt: Ctrl-C; the run can be resumed.
    """
    weights.require_read(options.teacher, options.weights)
    strategies.require(options)
    objective.require(options)
    set_allocator()
    with distributed.joined(choosing.choose_device(options.device)) as world:
        listener = world.listening(listener)
        if world.decided(lambda: setting.finished(options, listener, "finetune")):
            return Path(options.out)
        beforehand.require_frozen(options)
        with world.building(Path(options.out), resume=options.resume, overwrite=options.overwrite) as folder:
            place = setting.prepare(options, folder, "finetune", listener, arranged=arranged)
            if not setting.complete(place):
                train(options, place)
    return Path(options.out)


def train(options: Finetune, place: Setting) -> None:
    """Trains from the start or from the checkpoint, and writes the model and its record."""
    seed.seed_everything(options.seed)
    strategy = strategies.load(options.strategy)
    network = setting.adjusted(strategy.start(options, place), options)
    if place.aim is not None:
        place.aim.require(network)
    network.module.to(place.device)
    place.require_test_images(network.preprocess)
    told = strategy.fit(options, place, network)
    if place.aim is not None:
        place.aim.settle(network)
    setting.save(
        place,
        network,
        place.folder,
        metrics=setting.measured(place, network, place.folder),
        weights=dataclasses.asdict(network.weights),
        strategy=options.strategy,
        **told,
        **tta.measured(place, network),
    )
