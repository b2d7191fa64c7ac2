"""From an image file's bytes to its label, with the very code of `edgetl.runtime`, timed in parts and as a whole."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from edgetl.errors import EdgetlError
from edgetl.runtime.feeding import Feeder
from edgetl.runtime.heads import from_json
from edgetl.runtime.manifest import Variant
from edgetl.runtime.prediction import Answers, Prediction
from edgetl.runtime.preprocess import decode, from_dict, normalize, resize
from edgetl.runtime.session import GraphSpec, Session
from edgetl.runtime.task_prediction import TaskAnswers, cells
from edgetl.timing import Block, block

TOP = 5  # labels of an answer, as `Classifier.predict` gives by default


class Way:
    """What leads from a file to a label: decoding, preprocessing, the open session and the labels.

    The whole is what `Classifier.predict` does with the bytes of a file. Its parts are taken apart from it and so may
    add up to a little more: on its own, decoding hands out an array, which the whole does not make.
    """

    def __init__(self, session: Session, spec: GraphSpec, preprocess: Mapping[str, Any], labels: Sequence[str],
                 files: Sequence[str], *, embeds: bool, heads: Sequence[Mapping[str, Any]] = ()) -> None:
        """Keeps the files and what the parts need.

        Args:
            session: of a bundle's variant.
            spec: inputs and outputs of it.
            preprocess: as in the manifest.
            labels: as in the manifest.
            files: in base64.
            embeds: whether the graph takes pixels.
            heads: as in the manifest; none: one class an image.

        Raises:
            EdgetlError: the graph gives no logits.
        """
        self.session, self.embeds = session, embeds
        self.input = next(one.name for one in spec.inputs if one.role == "image")
        outputs = [one.name for one in spec.outputs if one.role == "logits"]
        if not outputs:
            raise EdgetlError("the graph gives no logits")
        self.output = outputs[0]
        self.preprocess = from_dict(preprocess, where="preprocess")
        self.files = [base64.b64decode(file) for file in files]
        variant = Variant("", "", "", spec.precision, 0, "", 0, spec.inputs, spec.outputs, (), embeds_preprocess=embeds)
        self.feeder = Feeder(self.preprocess, variant)
        self.answers = TaskAnswers(from_json(heads), {}) if heads else Answers(tuple(labels))

    def walk(self, interval_s: float | None) -> dict[str, tuple[float, ...]]:
        """Seconds of every file; raises what the runtime raises of a file that it cannot read."""
        pixels = [decode(file, self.preprocess) for file in self.files]

        def preprocessed(number: int) -> Any:
            stack = resize(pixels[number], self.preprocess)[None]
            return stack if self.embeds else normalize(stack, self.preprocess)

        return {"decode_s": self._every(lambda number: decode(self.files[number], self.preprocess), interval_s).seconds,
                "preprocess_s": self._every(preprocessed, interval_s).seconds,
                "end_to_end_s": self._every(self.label, interval_s).seconds}

    def _every(self, call: Any, interval_s: float | None) -> Block:
        """Each file once; the last goes before them, unseen."""
        count = len(self.files)
        return block(lambda number: call((number - 1) % count), count + 1, dropped=1, interval_s=interval_s)

    def label(self, number: int) -> str:
        """The label of a file."""
        images = [self.feeder.prepare(self.files[number])]
        batch = self.feeder.batch(images)
        logits = self.session.run({self.input: batch})[self.output]
        self.feeder.give_back(batch, images)
        answer = self.answers(logits, (TOP,))[0]
        if answer is None:
            raise EdgetlError("the graph's logits are not finite")
        return answer.label if isinstance(answer, Prediction) else "  ".join(cells(answer, "{:.4f}".format))
