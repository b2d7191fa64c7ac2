"""`edgetl gate`."""

from __future__ import annotations

from edgetl.recipe_gate import RegressionGate

EXAMPLE = """
edgetl gate main/bundle pr/bundle --max-regression 5%
edgetl gate main/bundle pr/bundle --data photos --max-drop 0.5 --max-size +10% --budget 2m --out verdict
"""


def gate(options: RegressionGate, as_json: bool) -> None:
    """Hold NEW against BASE on this machine: may it replace it?

    Interleaved A/B in fresh processes until the answer is clear. Exit 0 pass, 3 fail, 4 too noisy to say.
    """
    from edgetl import pipeline
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        found = pipeline.gate_with(options, listener)
    if as_json:
        from edgetl.bench import gate_verdict

        present.document(gate_verdict.to_json(found))
    else:
        print(found.line)
    found.insist()
