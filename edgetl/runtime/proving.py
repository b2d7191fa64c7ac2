"""Shows that an engine that was built on this machine answers as training did, before anybody is answered by it.

A graph means the same everywhere. An engine does not: a builder chooses kernels for the card, and wrong ones happen. So
a backend that builds engines says in `info()["proofs"]` what its engine was shown to be right in, and what is missing
there is shown now: the bundle's golden images go through the session once. Backends that run the graph itself say
nothing of proofs, and nothing is done.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from edgetl.errors import GateFailed
from edgetl.runtime.session import Session

if TYPE_CHECKING:
    from edgetl.runtime.bundle import Bundle
    from edgetl.runtime.manifest import Variant

PROOFS = "proofs"  # in `Session.info()`
NO_GOLDEN = "the bundle has no golden images"
HINT = ("Opening the bundle again builds it again; if it is refused again, use another variant or backend, or another "
        "version of what builds the engine.")


class Provable(Session, Protocol):
    """A session whose engine has to show that it is right; `info()["proofs"]` are the proofs that it has."""

    def prove(self, proof: str) -> None:
        """Notes a proof, also for the sessions that will open the same engine."""
        ...

    def leave_unproven(self, why: str) -> None:
        """Notes why nothing could be shown: a clause, for `info()["unproven"]`."""
        ...

    def disprove(self) -> str:
        """Closes the session and sees to it that nobody opens the engine again; returns how, as a clause."""
        ...


def proof_of(bundle: Bundle, variant: Variant) -> str:
    """A name for what is shown: the golden images, how they are fed, and how near the answers must be."""
    import hashlib

    fed = bundle.manifest.preprocess if variant.embeds_preprocess else None
    limits = [variant.tolerance, variant.features_tolerance]
    shown = [bundle.manifest.golden["sha256"], limits, [one.shape for one in variant.outputs], repr(fed)]
    return f"golden-{hashlib.sha256(json.dumps(shown).encode()).hexdigest()[:32]}"


def insist(bundle: Bundle, variant: Variant, session: Provable, backend: str) -> None:
    """Returns when the engine of a session answers the golden images of its bundle as training did.

    Args:
        bundle: without golden images nothing can be shown, which `info()` then says.
        variant: what was opened.
        session: where the engine is refused, or cannot be asked, it is closed.
        backend: its name, for sentences.

    Raises:
        GateFailed: the logits or features are outside the variant's tolerance; says by how much.
        BundleError: the golden file is damaged, or missing although the manifest names it.
        BackendUnavailable: the session cannot run them.
    """
    if not bundle.manifest.golden:
        session.leave_unproven(NO_GOLDEN)
        return
    proof = proof_of(bundle, variant)
    if proof in session.info()[PROOFS]:
        return
    from edgetl.runtime.golden import read_golden
    from edgetl.runtime.verifying import check_answers

    try:
        check_answers(bundle, variant, read_golden(bundle), session, backend)
        session.prove(proof)
    except GateFailed as problem:
        fate = session.disprove()
        raise GateFailed(f"{problem.message.rstrip('.')}; the engine is refused, and {fate}.", hint=HINT) from problem
    except BaseException:  # Ctrl-C, too
        session.close()
        raise


__all__ = ["NO_GOLDEN", "PROOFS", "Provable", "insist", "proof_of"]
