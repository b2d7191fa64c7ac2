"""The walk of `edgetl run` from stage to stage: what is finished is kept, what was interrupted goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from edgetl import heads, rundir, timing
from edgetl.errors import GateFailed
from edgetl.events import Event, Listener
from edgetl.ledger import CHANGED, FINISHED, INTERRUPTED, NEW, Ledger, digest
from edgetl.plan import FOLDERS
from edgetl.recipe import Bench, Distill, Export, Finetune, decisive, fields_of, unsaid
from edgetl.recipe_finetune import named_models

Stage = TypeVar("Stage", Finetune, Distill, Export, Bench)


class Walker:
    """Goes from stage to stage and passes by those that need no work."""

    def __init__(self, out: Path, ledger: Ledger, listener: Listener) -> None:
        self.out, self.ledger, self.listener = out, ledger, listener
        self.kept: list[str] = []
        self.fingerprints: dict[str, str] = {}
        self.asked = heads.ONE_CLASS  # of the data, by the first stage that says it

    def stage(self, name: str, options: Stage, work: Callable[[Stage, Listener], object], *,
              parents: Sequence[str]) -> None:
        """Does one stage's work unless it is done."""
        folder = self.out / FOLDERS[name]
        inputs = self._inputs(options, parents)
        self.ledger.fill(name, inputs, unsaid(type(options)))
        state = self.ledger.state(name, inputs, folder)
        if state == FINISHED:
            self.kept.append(name)
            self._note(name, f"{folder} is finished and its inputs did not change; it is kept.")
            return
        if state == CHANGED and folder.exists():
            self._note(name, f"{folder} is built again; {self.ledger.reason(name, inputs)}.")
        permitted = self._permitted(options, state)
        # Before the ledger says that the stage began: a folder that is somebody else's is refused, and what was left
        # of an attempt with other inputs goes.
        rundir.claim(folder, resume=getattr(permitted, "resume", None) or None, overwrite=permitted.overwrite)
        before = digest(folder)
        self.ledger.begin(name, inputs, folder)
        objection = None
        begun_s = timing.now_s()
        try:
            work(permitted, self.listener)
        except GateFailed as problem:
            # A gate says no after the work is done: the walk goes on with what was made and ends with exit code 3.
            if digest(folder) in (None, before):
                raise
            objection = problem.message
        self.ledger.finish(name, inputs, folder, objection)
        self._note(name, f"done in {timing.now_s() - begun_s:.0f} s.")

    def _permitted(self, options: Stage, state: str) -> Stage:
        """The options with leave to continue what was interrupted, or to replace what no longer holds.

        A folder that the ledger does not know is somebody else's, and gets no leave. With --overwrite the ledger
        knows all of them.
        """
        if state == INTERRUPTED and not isinstance(options, Export | Bench):
            return dataclasses.replace(options, resume=True)
        return dataclasses.replace(options, overwrite=state != NEW)

    def _inputs(self, options: Stage, parents: Sequence[str]) -> dict[str, Any]:
        """Everything that decides a stage's result, as plain JSON: options, the data, files and the stages before."""
        paths = {name: getattr(options, name) for name, field in fields_of(type(options)).items()
                 if field.metadata["path"] and name not in ("data", "unlabeled", "source")}
        files = {f"content of {name}": digest(Path(value)) for name, value in paths.items()
                 if value is not None and Path(value).exists()}
        before = {FOLDERS[parent]: digest(self.out / FOLDERS[parent]) for parent in parents}
        if isinstance(options, Finetune):
            self.asked = heads.asked(options)
        images = {} if options.data is None else {"images": self._fingerprint(options.data, self.asked)}
        if isinstance(options, Distill) and options.unlabeled:
            from edgetl import loose

            images["images without a label"] = loose.contents(options.unlabeled)
        if isinstance(options, Finetune) and options.source:
            images["images of the source"] = self._fingerprint(options.source, heads.ONE_CLASS)
        if isinstance(options, Finetune):
            files |= {f"content of {one}": digest(Path(one)) for one in named_models(options.features_from)}
        return {**decisive(options), **files, **before, **images}

    def _fingerprint(self, data: str, asked: heads.Asked) -> str:
        from edgetl import splits
        from edgetl.datasets import open_data

        if data not in self.fingerprints:
            opened = open_data(data, asked=asked)
            self.fingerprints[data] = splits.fingerprint_of(opened, splits.content_digests(opened))
        return self.fingerprints[data]

    def _note(self, stage: str, text: str) -> None:
        self.listener(Event(stage, "note", {"text": text}))
