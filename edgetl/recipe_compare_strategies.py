"""The options of `edgetl compare-strategies`: those of `edgetl finetune` for all, and which strategies with which else.

They are no table of a recipe: a comparison is made once, and what it recommends goes into `[finetune]`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgetl.errors import EdgetlError, RecipeError
from edgetl.recipe import check, fields_of
from edgetl.recipe_fields import DataFields, opt
from edgetl.recipe_file import literal
from edgetl.recipe_finetune import OWN_OPTIONS, STRATEGIES, Finetune, FinetuneFields
from edgetl.recipe_values import nearest
from edgetl.rundir import sha256

SEEDS = 3  # where neither --seeds nor --folds says how often
WHERE = "--strategies"
# What all must share: else they would not be compared on the same images, or by the same seeds.
SHARED = frozenset({*fields_of(DataFields), "max_bad", "seed", "device", "task", "label_columns"})
Require = Callable[[Finetune], None]  # raises EdgetlError where options contradict the strategy


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
    prefer: str = opt(
        "quick", "Which to recommend of those that the tests cannot tell apart from the best: the quickest to train or "
        "the most accurate.", choices=("quick", "accurate"))
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

    def arms(self, require: Require) -> tuple[tuple[Arm, ...], tuple[str, ...]]:
        """The strategies to compare, and of those that nobody named the sentences why they are left out.

        Args:
            require: says what does not fit a strategy.

        Raises:
            RecipeError: the grammar, a name, an option or its value is wrong, a strategy that is named does not fit or
                is named twice; all problems at once. Fewer than two are left.
        """
        problems: list[str] = []
        arms = [arm for text in self.strategies or known() for arm in self._parsed(text, problems)]
        reasons = {arm.name: _misfit(arm, require) or (None if self.strategies else _needless(arm)) for arm in arms}
        misfits = [f"'{name}': {reason}" for name, reason in reasons.items() if reason is not None]
        if self.strategies:
            problems += misfits
        arms = [arm for arm in arms if reasons[arm.name] is None]
        names = [arm.name for arm in arms]
        problems += [f"'{name}' is named twice" for name in dict.fromkeys(names) if names.count(name) > 1]
        if not problems and len(arms) < 2:
            problems.append(f"found {' and '.join(names) or 'nothing'}, expected two strategies or more to compare")
        if problems:
            raise RecipeError(problems, where=WHERE)
        return tuple(arms), tuple(misfits)

    def _parsed(self, text: str, problems: list[str]) -> Iterator[Arm]:
        """The rows of one `--strategies`; adds to `problems` what is wrong with it."""
        named, *pairs = (part.strip() for part in text.split(";"))
        own = _options(_joined([pair for pair in pairs if pair]), text, problems)
        for name in (one.strip() for one in named.split(",")):
            if name not in known():
                problems.append(f"'{text}': there is no strategy '{name}'{nearest(name, known())}; "
                                f"known: {', '.join(known())}")
                continue
            told = ";".join([name, *(_told(key, value) for key, value in own.items())])
            kept = {**self._common(name), **own, "strategy": name, "resume": False, "overwrite": False}
            yield Arm(told, _folder(told), Finetune(**kept), own)

    def _common(self, strategy: str) -> dict[str, Any]:
        """What is the same for all strategies, but for the options that only some of them read."""
        idle = set(OWN_OPTIONS) - set(STRATEGIES[strategy].reads)
        return {name: field.default if name in idle else getattr(self, name)
                for name, field in fields_of(FinetuneFields).items()}


def _misfit(arm: Arm, require: Require) -> str | None:
    """Why a strategy does not fit its options; None where it does."""
    try:
        require(arm.options)
    except EdgetlError as problem:
        return problem.message
    return None


def _needless(arm: Arm) -> str | None:
    """Why a strategy that nobody named would only repeat another; None where it would not."""
    if arm.options.strategy == "feature-copy" and not (arm.options.features_from or arm.options.head_width):
        return "without --features-from it is probe once more."
    return None


def known() -> list[str]:
    """Names of all strategies."""
    return list(STRATEGIES)


def _joined(pairs: Sequence[str]) -> list[str]:
    """The options as `key=value`, where those of a loss have been put back behind it: `loss=focal;gamma=2`."""
    found: list[str] = []
    for pair in pairs:
        known_key = pair.partition("=")[0].strip().replace("-", "_") in fields_of(Finetune)
        if not known_key and found and found[-1].startswith("loss="):
            found[-1] += f";{pair}"
        else:
            found.append(pair)
    return found


def _options(pairs: Sequence[str], text: str, problems: list[str]) -> dict[str, Any]:
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
