"""Whether torchrun started this process as one of several, read from its environment; imports nothing heavy."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgetl.errors import EdgetlError

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
TOGETHER = ("finetune", "distill")  # the verbs that several processes do together
APART = {  # what others do with several GPUs
    "compare-strategies": "Start it once for each GPU, with CUDA_VISIBLE_DEVICES, some of the --strategies and an "
    "--out of its own; or train each under torchrun with `edgetl finetune --strategy`.",
    "prune": "Leave torchrun out, or give it `edgetl distill --student slim:R`, which is the same with --params.",
}


@dataclass(frozen=True)
class Place:
    """The place of this process among those that torchrun started."""

    rank: int  # among all
    local_rank: int  # among those of its node
    size: int  # how many there are
    local_size: int  # how many there are on its node
    node: int


def place(environment: Mapping[str, str] | None = None) -> Place | None:
    """Where torchrun placed this process; None where it runs alone.

    Raises:
        EdgetlError: what torchrun tells is not whole, as where another launcher set a part of it.
    """
    told = {name: value for name, value in (environment or os.environ).items() if name in NAMES}
    if "RANK" not in told or told.get("WORLD_SIZE", "1") == "1":
        return None
    lacking = [name for name in NAMES if name not in told]
    if lacking:
        raise EdgetlError(
            f"WORLD_SIZE is {told['WORLD_SIZE']}, and {', '.join(lacking)} cannot be found in the environment.",
            hint="Start with torchrun, which sets all of them, or unset WORLD_SIZE and RANK.",
        )
    try:
        rank, local_rank, size, local_size, node = (int(told[name]) for name in NAMES[:5])
    except ValueError as problem:
        raise EdgetlError(
            "RANK, WORLD_SIZE and the others that torchrun sets are no whole numbers.", hint="Start with torchrun."
        ) from problem
    return Place(rank, local_rank, size, local_size, node)


@contextlib.contextmanager
def one_voice(verb: str) -> Iterator[None]:
    """Lets only the first of several processes print results and hints; failures are told after the block.

    Raises:
        EdgetlError: several processes were started for a command that only one can do.
    """
    found = place()
    if found is None:
        yield
        return
    if verb not in TOGETHER and not verb.startswith("-"):
        problem = EdgetlError(
            f"torchrun started {found.size} processes, and `edgetl {verb}` is work for one.",
            hint=APART.get(verb, f"Leave torchrun out; it is for {' and '.join(TOGETHER)}."),
        )
        problem.told = found.rank > 0
        raise problem
    if found.rank == 0:
        yield
        return
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
