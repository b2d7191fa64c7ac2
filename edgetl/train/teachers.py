"""Who teaches: a RUN, a network of a family with its own head, or a classifier in ONNX.

Every teacher answers with logits of the data's classes in the data's order: its classes are found by name, others that
it may know are left out, and what is left is its answer, given that the image shows one of these.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgetl import extras, foreign, heads, models, plugins, recipe_teacher, rundir, weights
from edgetl.errors import EdgetlError, UnknownName
from edgetl.events import Event
from edgetl.heads import Asked
from edgetl.models import Network
from edgetl.recipe import Distill
from edgetl.recipe_teacher import BLACK_BOX, GraphTeacher, Named, NetworkTeacher, RunTeacher
from edgetl.runtime.preprocess import Preprocess
from edgetl.train import blackbox, classes, mixing
from edgetl.train.blackbox import BlackBox

if TYPE_CHECKING:
    from edgetl.train.aim import Aim
    from edgetl.train.setting import Setting


@dataclass(frozen=True)
class Teacher:
    """One who answers with logits of the data's classes, in the data's order."""

    name: str  # as it was named
    labels: tuple[str, ...]  # of its answers: the data's
    sha256: str  # of its file, or of its tensors where it is none
    key: str  # digest of all that decides its logits to a prepared image
    preprocess: Preprocess
    network: Network | None  # on the CPU, in eval mode; None: a black box
    box: BlackBox | None = None
    metrics: Mapping[str, Any] | None = None  # on this data; None where they are not known

    @property
    def model(self) -> str:
        """FAMILY/VARIANT, or onnx:FILE without folders, which are nobody's business elsewhere."""
        return self.network.model if self.network is not None else BLACK_BOX + recipe_teacher.graph_file(self.name).name

    @property
    def parameters(self) -> int:
        """Number of its weights."""
        return self.box.parameters if self.box is not None else weights.parameter_count(self.require_network().module)

    def require_network(self, purpose: str = "") -> Network:
        """The network.

        Raises:
            EdgetlError: it is a black box; says what wanted to look into it.
        """
        if self.network is None:
            raise EdgetlError(
                f"{purpose or 'This'} looks into the teacher, and {self.name} is a black box that only answers.",
                hint="Use losses on logits (labels, kd, dkd, dist) and a student of its own, or another teacher first.",
            )
        return self.network


def named(options: Distill) -> tuple[Named, ...]:
    """The teachers as they are named, checked as far as can be without reading them.

    Raises:
        RecipeError, EdgetlError, UnknownName: see the sentences.
        MissingDependency: what reads or runs a graph is not installed.
    """
    found = recipe_teacher.named(options.teacher, options.teacher_options)
    if options.teacher_mix == mixing.WEIGHTED and len(options.teacher_weight) != len(found):
        raise EdgetlError(
            f"--teacher-mix weighted needs a weight for each of the {len(found)} teachers, found "
            f"{len(options.teacher_weight)}.", hint="For two teachers: --teacher-weight 2,1.",
        )  # fmt: skip
    if options.teacher_weight and options.teacher_mix != mixing.WEIGHTED:
        raise EdgetlError(
            f"--teacher-weight is read with --teacher-mix weighted, found --teacher-mix {options.teacher_mix}."
        )
    for one in found:
        _require(one)
    return found


def _require(one: Named) -> None:
    """Returns when what the name names is there."""
    if isinstance(one.said, RunTeacher):
        weights.read_record(Path(one.name))  # says that it is no RUN
    elif isinstance(one.said, GraphTeacher):
        extras.require("onnx", extra="train", purpose=f"The teacher {one.name}")
        extras.require("onnxruntime", extra="cpu", purpose=f"The teacher {one.name}")
    elif isinstance(one.said, NetworkTeacher):
        family, _, variant = one.name.partition("/")
        if "." not in family and family.replace("_", "-") not in plugins.names("models"):
            raise EdgetlError(
                f"The teacher {one.name} does not exist: neither a RUN folder nor FAMILY/VARIANT with one of the "
                f"families {', '.join(plugins.names('models'))}.",
                hint="Give the folder that `edgetl finetune` or `edgetl distill` wrote, FAMILY/VARIANT, or onnx:FILE.",
            )
        variants = plugins.load("models", family).variants()
        if variant.partition(".")[0] not in variants:  # weights of one's own stand behind a dot
            raise UnknownName("model", variant, variants)
    for what, file in one.files.items():
        if not file.is_file():
            state = "is a folder" if file.is_dir() else "does not exist"
            raise EdgetlError(f"The teacher {one.name}: {file} ({what}) {state}.")


def asked(options: Distill) -> Asked:
    """What the teachers answer, and so what the data are asked: that of the first RUN with another task than one class.

    Raises:
        RecipeError, EdgetlError: the teachers are named wrongly, or the record of one cannot be read.
    """
    found = recipe_teacher.named(options.teacher, options.teacher_options)
    runs = [Path(one.name) for one in found if isinstance(one.said, RunTeacher) and weights.is_run(Path(one.name))]
    tasks = [heads.asked_again(weights.read_record(run)) for run in runs]
    return next((one for one in tasks if not one.plain), heads.ONE_CLASS)


def require_task(found: Sequence[Named], wanted: Asked) -> None:
    """Returns when every teacher answers what is asked, as far as the task goes.

    Raises:
        EdgetlError: one does not; with other tasks than one class an image all must be RUNs of that task.
    """
    for one in found if not wanted.plain else ():
        if not isinstance(one.said, RunTeacher):
            raise EdgetlError(f"The teacher {one.name} knows one class an image, and another one was trained with "
                              f"--task {wanted.task}.", hint="Give RUN folders of the same task as teachers.")
        theirs = heads.asked_again(weights.read_record(Path(one.name)))
        if theirs.task != wanted.task or theirs.plain:
            raise EdgetlError(f"The teacher {one.name} was trained on "
                              f"{heads.words(heads.of_record(weights.read_record(Path(one.name))))}, and another one "
                              f"with --task {wanted.task}.", hint="Give RUN folders of the same task as teachers.")


def identity(options: Distill) -> dict[str, Any]:
    """What decides who teaches: names and contents of files; the same on --resume."""
    found: dict[str, Any] = {}
    for number, one in enumerate(recipe_teacher.named(options.teacher, options.teacher_options), 1):
        which = "teacher" if number == 1 else f"teacher {number}"
        for what, file in one.files.items():
            digest = rundir.sha256(file.read_bytes()) if file.is_file() else None
            found[f"{which} sha256" if what == "teacher" else f"{which} {what} sha256"] = digest
        if "teacher" not in one.files:
            found[which] = one.name
        if isinstance(one.said, RunTeacher) and weights.is_run(Path(one.name)):
            answered = heads.of_record(weights.read_record(Path(one.name)))
            found |= {f"{which} heads": heads.to_json(answered)} if answered else {}
        said = {key: value for key, value in dataclasses.asdict(one.said).items() if key not in one.files and value}
        if said:
            found[f"{which} options"] = json.loads(json.dumps(said))
    if options.teacher_mix != mixing.MEAN:
        found["teacher mix"] = [options.teacher_mix, *options.teacher_weight]
    return found


def recorded_rule(found: Sequence[Named], listener: Any, stage: str) -> Mapping[str, Any] | None:
    """The rule of the split that the first RUN among the teachers was trained with; None where there is no RUN."""
    rules = [weights.read_record(Path(one.name))["data"]["rule"] for one in found if isinstance(one.said, RunTeacher)]
    if any(rule != rules[0] for rule in rules):
        text = "The teachers were trained on other splits of the data: one may know images that another is tested on."
        listener(Event(stage, "warning", {"text": text}))
    return rules[0] if rules else None


def opened(found: Sequence[Named], place: Setting) -> tuple[Teacher, ...]:
    """The teachers, with the data's classes picked out of their own.

    Raises:
        DataError: a class of the data is none of a teacher's; lists them.
        EdgetlError: one cannot be read or built.
    """
    return tuple(_opened(one, place) for one in found)


def _opened(one: Named, place: Setting) -> Teacher:
    if isinstance(one.said, GraphTeacher):
        return _of_graph(one.name, one.said, place)
    if isinstance(one.said, NetworkTeacher):
        return _of_family(one.name, one.said, place)
    if place.aim is not None:
        return _of_task(one.name, place, place.aim)
    run = weights.load(Path(one.name))
    digest = rundir.sha256((run.folder / rundir.MODEL).read_bytes())
    columns = classes.columns([(name,) for name in run.labels], place.data.labels, teacher=one.name)
    whole = columns == tuple(range(len(run.labels)))
    network = run.network if whole else classes.selected(run.network, columns)
    key = digest if whole else rundir.sha256(f"{digest} {columns}".encode())
    same = whole and run.record["data"]["fingerprint"] == place.parts.fingerprint
    metrics = run.record.get("metrics") if same else None
    return Teacher(one.name, place.data.labels, digest, key, network.preprocess, network, metrics=metrics)


def _of_task(name: str, place: Setting, aim: Aim) -> Teacher:
    """A RUN of the data's task; while it teaches it speaks in standardised values, as the student does."""
    run = weights.load(Path(name), any_task=True)
    theirs = heads.of_record(run.record)
    heads.require_same(aim.heads, theirs, f"The teacher {name}")
    digest = rundir.sha256((run.folder / rundir.MODEL).read_bytes())
    network = classes.selected(run.network, heads.order(aim.heads, theirs))
    aim.begin(network)
    said = [digest, heads.to_json(aim.heads), aim.mean.tolist(), aim.scale.tolist()]
    same = theirs == aim.heads and run.record["data"]["fingerprint"] == place.parts.fingerprint
    metrics = run.record.get("metrics") if same else None
    return Teacher(name, place.data.labels, digest, rundir.sha256(json.dumps(said).encode()), network.preprocess,
                   network, metrics=metrics)


def _of_graph(name: str, said: GraphTeacher, place: Setting) -> Teacher:
    box = blackbox.read(name, said)
    if box.labels is None:
        _assume_order(name, box.classes, place)
    else:
        theirs = [(one,) for one in box.labels]
        box = blackbox.with_columns(box, classes.columns(theirs, place.data.labels, teacher=name))
    return Teacher(name, place.data.labels, box.sha256, box.key, box.preprocess, None, box)


def _assume_order(name: str, count: int, place: Setting) -> None:
    """Takes unnamed classes for the data's, with a warning; raises EdgetlError where they are not as many."""
    labels = place.data.labels
    if count != len(labels):
        raise EdgetlError(
            f"The teacher {name} has {count} classes and does not say what they are called; the data has "
            f"{len(labels)}.", hint="Name them, a line each, in its order: --teacher-options labels=FILE.",
        )  # fmt: skip
    text = f"Nobody says how the classes of the teacher {name} are called; they are taken for the data's, in its order."
    place.listener(Event(place.stage, "warning", {"text": text}))


def _of_family(name: str, said: NetworkTeacher, place: Setting) -> Teacher:
    """A network with the head that its weights bring."""
    names: classes.Synonyms = ()
    if said.labels is not None:
        spelled = recipe_teacher.spelled("labels", said.labels)
        names = [(one,) for one in foreign.read_names(Path(said.labels), spelled)]
    elif said.weights is None:
        names = models.class_names(name)
    # Before anything is downloaded.
    columns = classes.columns(names, place.data.labels, teacher=name) if names else ()
    file = Path(said.weights) if said.weights is not None else None
    count = len(names) or len(place.data.labels)
    network = models.create(name, classes=count, pretrained=file is None, weights=file, image_size=said.image_size)
    if any(one.startswith(f"{network.head}.") for one in (*network.weights.mismatched, *network.weights.missing)):
        raise EdgetlError(
            f"The weights of the teacher {name} have no head of {count} classes: {'; '.join(network.weights.reasons)}.",
            hint="Fine-tune it on this data first (`edgetl finetune`), or name its own classes: --teacher-options "
            "labels=FILE.",
        )
    network.module.eval()
    if names:
        network = classes.selected(network, columns)
    else:
        _assume_order(name, count, place)
    digest = digest_of(network)
    return Teacher(name, place.data.labels, digest, digest, network.preprocess, network)


def digest_of(network: Network) -> str:
    """SHA-256 of a network's architecture and tensors."""
    found = hashlib.sha256(network.model.encode())
    for name, tensor in network.module.state_dict().items():
        plain = tensor.detach().cpu().contiguous()
        found.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        found.update(plain.flatten().view(torch.uint8).numpy().data if plain.numel() else b"")
    return found.hexdigest()
