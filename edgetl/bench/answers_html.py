"""What a classifier confuses and its worst mistakes, as pieces of an html page."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

from edgetl.bench.markup import escape, scrolling, table
from edgetl.bench.report import Mistake
from edgetl.bench.tables import Table
from edgetl.bench.task_mistakes import Hard
from edgetl.runtime import planes
from edgetl.runtime.preprocess import Preprocess

THUMBNAIL_PX = 192
MATRIX_CLASSES = 30  # a larger confusion matrix is told as its most frequent confusions


def thumbnail(encoded: bytes) -> bytes:
    """A JPEG, at most 192 pixels wide and high, of an encoded image; of more channels than colours, the first three."""
    from PIL import Image

    # The runtime's decoder: rotated, transparent and 16-bit images look as the model saw them.
    picture = Image.fromarray(planes.colors_of(encoded, Preprocess(size_hw=(THUMBNAIL_PX, THUMBNAIL_PX))))
    picture.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    target = io.BytesIO()
    picture.save(target, "JPEG", quality=80)
    return target.getvalue()


def matrix(confusion: Sequence[Sequence[int]], labels: Sequence[str], n: int) -> str:
    """The confusion matrix [K, K] of `n` images, shaded by the share of the true class; many classes become a list."""
    if len(labels) > MATRIX_CLASSES:
        return _confusions(confusion, labels)
    head = "".join(f'<th scope="col"><span>{escape(label)}</span></th>' for label in labels)
    lines = "\n".join(_matrix_row(labels[place], place, counts) for place, counts in enumerate(confusion))
    caption = f"Rows: what {n} test images are. Columns: what was answered. Shade: share of the row."
    return scrolling(f'<table class="matrix">\n<caption>{caption}</caption>\n<thead><tr><td></td>{head}</tr></thead>\n'
                      f"<tbody>\n{lines}\n</tbody>\n</table>", "Confusion matrix")


def _matrix_row(label: str, place: int, counts: Sequence[int]) -> str:
    total = sum(counts)
    cells = "".join(f'<td class="{"hit" if column == place else "miss"}" style="--share:{count / max(1, total):.2f}">'
                    f"{count}</td>" for column, count in enumerate(counts))
    return f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>'


def _confusions(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    pairs = [(count, labels[true], labels[said]) for true, row in enumerate(confusion)
             for said, count in enumerate(row) if true != said and count]
    worst = sorted(pairs, reverse=True)[:20]
    found = Table(f"The most frequent of {len(pairs)} kinds of confusion", ("images", "true class", "answered"),
                  tuple((str(count), true, said) for count, true, said in worst))
    return table(found)


def mistakes(found: Sequence[Mistake], pictures: Mapping[str, bytes]) -> str:
    """Thumbnails of the most confident wrong answers, as far as there are pictures by key; empty without mistakes."""
    if not found:
        return ""
    return hardest([Hard(one.key, one.predicted, one.label, f"{one.score * 100:.0f} %") for one in found], pictures,
                   "The wrong answers with the highest scores. Some may be wrong labels.")


def hardest(found: Sequence[Hard], pictures: Mapping[str, bytes], lead: str) -> str:
    """Thumbnails of wrong answers of whatever kind under a line that says which they are; empty without any."""
    if not found:
        return ""
    shown = "".join(_hard(one, pictures.get(one.key)) for one in found)
    return f'<p>{escape(lead)}</p>\n<ul class="mistakes">\n{shown}\n</ul>'


def _hard(one: Hard, picture: bytes | None) -> str:
    text = f"A test image of {one.known}, answered as {one.said}"
    data = "" if picture is None else base64.b64encode(picture).decode()
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{escape(text)}">' if data else ""
    return (f"<li>{image}<p>said <strong>{escape(one.said)}</strong> ({escape(one.far)})<br>"
            f'is <strong>{escape(one.known)}</strong></p><p class="key">{escape(one.key)}</p></li>')
