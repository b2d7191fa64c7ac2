"""The options of `edgetl compare-strategies`: those of `edgetl finetune` for all, and which strategies with which else.

They are no table of a recipe: a comparison is made once, and what it recommends goes into `[finetune]`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgetl.errors import RecipeError
from edgetl.recipe import check, fields_of
from edgetl.recipe_fields import DataFields, opt
from edgetl.recipe_file import literal
from edgetl.recipe_finetune import Finetune, FinetuneFields
from edgetl.recipe_values import nearest
from edgetl.rundir import sha256

SEEDS = 3  # where neither --seeds nor --folds says how often
WHERE = "--strategies"
# What all must share: else they would not be compared on the same images, or by the same seeds.
SHARED = frozenset({*fields_of(DataFields), "seed", "device"})
# A strategy that does not fit without one of these is left out of the default list.
NEEDS: Mapping[str, str] = {"joint": "source", "feature-copy": "features_from"}


@dataclass(frozen=True)
class Arm:
    """One row of the comparison: a strategy with its options."""

    name: str  # as it was written, in one form: `full;layer-decay=0.7`
    folder: str  # the same as the name of a folder
    options: Finetune  # without a seed and a place of its own
    own: Mapping[str, Any]  # the options that only this row has


@dataclass(frozen=True, kw_only=True)
class CompareStrategies(FinetuneFields):
    """`edgetl compare-strategies`."""

    out: str = opt(
        dataclasses.MISSING, "Folder to write the comparison to, with the winner's RUN in OUT/winner.", given=True)
    strategies: tuple[str, ...] = opt(
        (), "NAME[,NAME...][;key=value...], the keys being flags of `edgetl finetune` without their dashes; may be "
        "repeated (default: every strategy that fits the data at hand).")
    seeds: int | None = opt(
        None, f"Train each with so many seeds, from --seed on, and compare on validation (default: {SEEDS}).", low=1,
        high=100)
    folds: int | None = opt(
        None, "In place of seeds: cross-validation over training and validation images, in so many stratified folds.",
        low=2, high=100)
    keep_runs: bool = opt(
        False, "Keep the weights of every RUN; else those of the winner stay, and of the others what they answered.",
        result=False)

    def repeats(self) -> int:
        """How often each strategy is trained.

        Raises:
            RecipeError: both --seeds and --folds are given.
        """
        if self.seeds is not None and self.folds is not None:
            raise RecipeError([f"found --seeds {self.seeds} and --folds {self.folds}, expected one of them"],
                              where="edgetl compare-strategies")
        return self.folds or self.seeds or SEEDS

    def arms(self) -> tuple[Arm, ...]:
        """The strategies to compare.

        Raises:
            RecipeError: the grammar, a name, an option or its value is wrong, or a strategy is named twice; all
                problems at once. Fewer than two are named.
        """
        problems: list[str] = []
        arms = [arm for text in self.strategies or self._fitting() for arm in self._parsed(text, problems)]
        names = [arm.name for arm in arms]
        problems += [f"'{name}' is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        if not problems and len(arms) < 2:
            problems.append(f"found {' and '.join(names) or 'nothing'}, expected two strategies or more to compare")
        if problems:
            raise RecipeError(problems, where=WHERE)
        return tuple(arms)

    def _fitting(self) -> Iterator[str]:
        """Every strategy but those that need an option that was not given."""
        for name in known():
            need = NEEDS.get(name)
            if need is None or getattr(self, need, None):
                yield name

    def _parsed(self, text: str, problems: list[str]) -> Iterator[Arm]:
        """The rows of one `--strategies`; adds to `problems` what is wrong with it."""
        named, *pairs = (part.strip() for part in text.split(";"))
        own = _options([pair for pair in pairs if pair], text, problems)
        for name in (one.strip() for one in named.split(",")):
            if name not in known():
                problems.append(f"'{text}': there is no strategy '{name}'{nearest(name, known())}; "
                                f"found are {', '.join(known())}")
                continue
            told = ";".join([name, *(_told(key, value) for key, value in own.items())])
            common = {field: getattr(self, field) for field in fields_of(FinetuneFields)}
            kept = {**common, **own, "strategy": name, "resume": False, "overwrite": False}
            yield Arm(told, _folder(told), Finetune(**kept), own)


def known() -> list[str]:
    """Names of all strategies."""
    return list(fields_of(Finetune)["strategy"].metadata["choices"])


def _options(pairs: Collection[str], text: str, problems: list[str]) -> dict[str, Any]:
    """The values of `key=value`, or of `key` alone for one that is on; adds to `problems` what is wrong."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        name = key.strip().replace("-", "_")
        field = fields_of(FinetuneFields).get(name)
        if field is not None and (name in SHARED or field.metadata["given"]):
            problems.append(f"'{text}': '{key}' is the same for all strategies; give it as --{key}")
            continue
        said: Any = literal(value.strip()) if equals else True
        wrong, kept = check(FinetuneFields, {name: said})
        problems += [f"'{text}': {one}" for one in wrong]
        found |= kept
    return found


def _folder(told: str) -> str:
    """A name of a folder for the name of a row; of one that cannot be kept as it is, a digest comes along."""
    plain = re.sub(r"[^A-Za-z0-9.=+,-]", "_", told)
    if len(plain) <= 100 and plain == told.replace(";", "_"):
        return plain
    return f"{plain[:100]}-{sha256(told.encode())[:8]}"


def _told(key: str, value: Any) -> str:
    flag = key.replace("_", "-")
    if value is True:
        return flag
    return f"{flag}={','.join(value) if isinstance(value, tuple) else str(value).lower() if value is False else value}"
