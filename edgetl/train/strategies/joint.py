"""The target and a labelled source data set (--source) together: a shared backbone, a head for each.

Multi-task learning with a related task as in Caruana, Machine Learning 28, 1997; that a source which is trained along
keeps features which a small target would lose: Ge and Yu, "Borrowing treasures from the wealthy: deep transfer learning
through selective joint fine-tuning", CVPR 2017, arXiv:1702.08690.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetl.errors import EdgetlError
from edgetl.models import Network
from edgetl.recipe import Finetune
from edgetl.train import joining, setting
from edgetl.train.freezing import frozen
from edgetl.train.moving import all_but
from edgetl.train.setting import Setting
from edgetl.train.starting import start as start
from edgetl.train.steps import terms, trained


def require(options: Finetune) -> None:
    """Returns when there is a source.

    Raises:
        EdgetlError: there is none.
    """
    if not options.source:
        raise EdgetlError(
            "--strategy joint needs --source, a labelled data set to train together with --data.",
            hint="Give a folder, csv:FILE or a data set's name as --source, or --strategy full.",
        )


def fit(options: Finetune, place: Setting, network: Network) -> Mapping[str, Any]:
    """Moves everything that --freeze does not hold, on the images of both.

    Raises:
        DataError: the source cannot be used.
        EdgetlError: --freeze matches nothing, or everything.
    """
    source = joining.gather(options, place)
    moves = all_but(network.module, frozen(network, options.freeze)) if options.freeze else None
    place.note(
        f"{len(source.items)} images of {len(source.data.labels)} classes of {source.data.name} join the training, "
        f"{100 * options.source_ratio:g} % of each step's"
    )
    task = joining.JointTask(network, terms(place), place, source, options, moves)
    told = {"data": setting.absolute(str(options.source)), **source.to_json()}
    return {**trained(place, network, moves, task=task), "source": told}
