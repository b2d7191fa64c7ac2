"""Tables with several classes an image, with labels, and with values."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgetl.datasets import DataSet, open_data
from edgetl.errors import DataError
from edgetl.heads import CLASSIFY, MULTILABEL, REGRESS, Asked

NAN = math.nan


def table(folder: Path, *lines: str, images: str = "abcd") -> str:
    for name in images:
        (folder / f"{name}.png").write_bytes(name.encode())
    (folder / "t.csv").write_text("\n".join(lines) + "\n")
    return f"csv:{folder / 't.csv'}"


def answers(data: DataSet) -> list[tuple[float, ...]]:
    return [item.answers for item in data.items]


def same(found: list[tuple[float, ...]], expected: list[tuple[float, ...]]) -> bool:
    return np.array_equal(np.array(found), np.array(expected), equal_nan=True)


def test_columns_of_classes_are_heads(tmp_path: Path) -> None:
    spec = table(tmp_path, "PATH,Shape,size,who", "b.png,flat,10,x", "a.png,round,,y", "c.png,,9,z")
    data = open_data(spec, asked=Asked(CLASSIFY, ("Shape", "size")))
    assert [(head.name, head.labels) for head in data.heads] == [("Shape", ("flat", "round")), ("size", ("9", "10"))]
    assert data.labels == ("Shape: flat", "Shape: round", "size: 9", "size: 10")
    assert same(answers(data), [(1.0, NAN), (0.0, 1.0), (NAN, 0.0)])
    assert {item.label for item in data.items} == {0} and data.read(data.items[0]) == b"a"
    assert data.notes[0].endswith("not used: who.")
    assert data.notes[1] == "Of 3 images nothing is said about Shape for 1, size for 1."


def test_labels_in_one_cell(tmp_path: Path) -> None:
    spec = table(tmp_path, "path,labels,by", "a.png,sea|sky,x", "b.png,,x", "c.png,sky; tree,x")
    data = open_data(spec, asked=Asked(MULTILABEL))
    assert data.labels == ("sea", "sky", "tree") and data.heads[0].kind == MULTILABEL
    assert answers(data) == [(1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 1.0, 1.0)]
    assert data.notes == (f"Columns of {tmp_path / 't.csv'} that are not used: by.",)


def test_a_column_a_label(tmp_path: Path) -> None:
    spec = table(tmp_path, "path,Sea,Sky,split", "a.png,1,no,train", "b.png,0,,val", "c.png,0.0,YES,train")
    data = open_data(spec, asked=Asked(MULTILABEL))
    assert data.labels == ("Sea", "Sky") and [item.split for item in data.items] == ["train", "val", "train"]
    assert same(answers(data), [(1.0, 0.0), (0.0, NAN), (0.0, 1.0)])


def test_columns_of_values(tmp_path: Path) -> None:
    spec = table(tmp_path, "path,mm,g,weight", "a.png,1.5,-2e3,2", "b.png,,7,1")
    data = open_data(spec, asked=Asked(REGRESS))
    assert data.labels == ("mm", "g") and same(answers(data), [(1.5, -2000.0), (NAN, 7.0)])
    assert [item.weight for item in data.items] == [2.0, 1.0]
    assert open_data(spec, asked=Asked(REGRESS, ("g",))).labels == ("g",)


@pytest.mark.parametrize(
    ("asked", "lines", "says"),
    [
        (Asked(REGRESS), ("path,mm", "a.png,1", "b.png,tall"), "line 3: 'mm' is 'tall', expected a number"),
        (Asked(REGRESS), ("path,mm", "a.png,inf"), "line 2: 'mm' is 'inf'"),
        (Asked(REGRESS), ("path,mm,g", "a.png,1,2", "b.png,,"), "line 3: 'mm', 'g' is empty, so that nothing"),
        (Asked(REGRESS), ("path,split", "a.png,train"), "has no column to learn; found: path, split"),
        (Asked(REGRESS), ("file,mm", "a.png,1"), "no column 'path'; found: file, mm"),
        (Asked(REGRESS, ("cm",)), ("path,mm", "a.png,1"), "no column 'cm' to learn; found: path, mm"),
        (Asked(REGRESS), ("path,mm,split", "a.png,,val", "b.png,1,test"), "line 2: 'mm' is empty"),
        (Asked(REGRESS), ("path,mm,g,split", "a.png,,1,train", "b.png,1,1,test"), "'mm' has no value for any training"),
        (Asked(MULTILABEL), ("path,x,y", "a.png,1,2"), "line 2: 'y' is '2', expected 0, 1, or nothing"),
        (Asked(MULTILABEL), ("path,x,y", "a.png,1,0", "b.png,0,0"), "known to have the label 'y'"),
        (Asked(MULTILABEL), ("path,labels", "a.png,x", "b.png,x;y"), "known to be without the label 'x'"),
        (Asked(CLASSIFY, ("x",)), ("path,x", "a.png,1", "b.png,1"), "The column 'x' .* one class only"),
        (Asked(CLASSIFY, ("x",)), ("path,x,split", "a.png,1,train", "b.png,2,val"), "no training image has the class "
                                                                                  "'2' in the column 'x'"),
        (Asked(REGRESS), ("path,mm", "z.png,1"), "line 2: the image 'z.png' does not exist"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_sentence(tmp_path: Path, asked: Asked, lines: tuple[str, ...], says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_data(table(tmp_path, *lines), asked=asked)


def test_data_that_know_one_class_only_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--task regress needs a table, and digits knows one class an image"):
        open_data("digits", asked=Asked(REGRESS))
    with pytest.raises(DataError, match="--label-columns a,b needs a table"):
        open_data(str(tmp_path), asked=Asked(CLASSIFY, ("a", "b")))
