"""`edgetl distill`."""

from __future__ import annotations

from edgetl.recipe import Distill

EXAMPLE = """
edgetl distill --data photos --teacher runs/teacher --student slim:0.4 --out runs/student
edgetl distill --data photos --teacher runs/teacher --student timm/mobilenetv4_conv_small --out runs/small
edgetl distill --data photos --teacher runs/teacher --seeds 3 --views 4 --out runs/sure
edgetl distill --data photos --teacher runs/teacher --preset patient --unlabeled more-photos --out runs/patient
edgetl distill --data photos --teacher onnx:keras.onnx --teacher-options "mean=0,0,0;std=1,1,1;labels=names.txt" \
--student timm/mobilenetv4_conv_small --out runs/other
"""


def distill(options: Distill, as_json: bool) -> None:
    """Teach a small student what a fine-tuned teacher knows.

    Writes a RUN folder with the student, its record and its control: the same student without the teacher, which
    tells what the teacher is worth. --no-control leaves it out and saves its time.
    """
    from edgetl import pipeline, weights
    from edgetl.cli import present, progress

    with progress.shown() as listener:
        folder = pipeline.distill_with(options, listener)
    present.taught(folder, weights.read_record(folder), as_json)
