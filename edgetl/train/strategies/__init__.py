"""The strategies of fine-tuning, one small file each; the loop does not know which of them runs. A file here has

- `start(options, place) -> Network`: the network before it is trained;
- `fit(options, place, network) -> Mapping`: trains it to its best validated weights, and returns what run.json says of
  what moved;
- `require(options)`, only where options contradict one another: raises EdgetlError before anything is read.

The file name is the public name, with `-` for `_`. Names, summaries and the options that only some of them read stand
in `edgetl.recipe_finetune.STRATEGIES`, which --help reads without torch.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from edgetl.errors import EdgetlError, UnknownName
from edgetl.recipe_finetune import OWN_OPTIONS, STRATEGIES, Finetune, unread
from edgetl.train.reading import inputs


def load(name: str) -> ModuleType:
    """The module of a strategy.

    Raises:
        UnknownName: no such strategy; carries the choices.
    """
    if name not in STRATEGIES:
        raise UnknownName("strategy", name, tuple(STRATEGIES))
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def require(options: Finetune) -> None:
    """Returns when the strategy reads all options that were given for one.

    Raises:
        EdgetlError: it does not, or its options contradict one another.
    """
    idle = unread(options)
    if idle:
        readers = [name for name, one in STRATEGIES.items() if idle[0] in one.reads]
        raise EdgetlError(
            f"--{idle[0].replace('_', '-')} does nothing with --strategy {options.strategy}.",
            hint=f"Leave it out, or give --strategy {' or '.join(readers)}.",
        )
    check = getattr(load(options.strategy), "require", None)
    if check is not None:
        check(options)


__all__ = ["OWN_OPTIONS", "STRATEGIES", "inputs", "load", "require"]
