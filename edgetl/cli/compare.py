"""`edgetl compare`."""

from __future__ import annotations

from edgetl.recipe_compare import Compare

EXAMPLE = """
edgetl compare main/report pr/report
edgetl compare main/report.json pr/report.json --max-regression 5% --out comparison
edgetl compare board/report server/report --across-machines
"""


def compare(options: Compare, as_json: bool) -> None:
    """Compare two recorded reports case by case: faster, slower, same or inconclusive.

    With --max-regression a gate: exit 0 pass, 3 slower beyond doubt, 4 undecided; exit 1 on another machine.
    """
    from edgetl import pipeline
    from edgetl.bench import compare_words, comparison
    from edgetl.cli import present

    found = pipeline.compare_with(options)
    if as_json:
        present.document(comparison.to_json(found))
    else:
        for table in compare_words.tables(found):
            print(table.caption)
            present.table(table.columns, table.rows,
                          numeric=[table.numeric(column) for column in range(len(table.columns))])
            print()
        print(compare_words.line(found))
        for remark in compare_words.remarks(found):
            present.hint(remark)
    found.insist()
