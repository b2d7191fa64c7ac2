"""A folder of images: one sub-folder a class, or train/val/test with one sub-folder a class in each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from edgetl.datasets import IMAGE_ENDINGS, SPLIT_ALIASES, DataSet, Item, read_file, require_classes
from edgetl.errors import DataError

LAYOUT = "Expected FOLDER/CLASS/image.jpg, or FOLDER/train/CLASS/image.jpg with val and test beside train."


def load(argument: str | None) -> DataSet:
    """The images below a folder, labelled by their class folders.

    A folder `train` that holds class folders makes it a folder of splits; `valid` and `validation` are read as val.
    Hidden files and files that are no images are left out. Classes are sorted by name.

    Args:
        argument: path of the folder.

    Raises:
        DataError: no such folder, no images, an empty class folder, one class only, a class that train lacks.
    """
    if not argument:
        raise DataError("The data set 'folder' needs a path.", hint="Write --data PATH.")
    root = Path(argument).expanduser()
    _require_folder(root)
    parts = _splits(root)
    skipped: list[str] = []
    if parts:
        items, labels = _load_splits(root, parts, skipped)
    else:
        items, labels = _load_classes(root, skipped)
    return DataSet(name=root.resolve().name, labels=labels, items=tuple(sorted(items, key=lambda item: item.key)),
                   read=lambda item: read_file(root / item.key), notes=_notes(root, parts, skipped), source=argument)


def _require_folder(root: Path) -> None:
    if not root.exists():
        raise DataError(f"The folder {root} does not exist.", hint="Check the path given as --data.")
    if not root.is_dir():
        hint = f"Write --data csv:{root}" if root.suffix.lower() == ".csv" else LAYOUT
        raise DataError(f"{root} is a file, expected a folder of images.", hint=hint)


def _unreadable(problem: OSError) -> NoReturn:
    raise DataError(f"The folder {problem.filename} cannot be read: {problem.strerror}.",
                    hint="Check its permissions.") from problem


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as problem:
        _unreadable(problem)


def _splits(root: Path) -> dict[str, Path]:
    """Split folders by split; empty where `root` holds class folders (one may be called 'train': no folders inside)."""
    found: dict[str, Path] = {}
    folders = [path for path in _folders(root) if path.name.lower() in SPLIT_ALIASES]
    if not any(_folders(path) for path in folders):
        return {}
    for path in folders:
        split = SPLIT_ALIASES[path.name.lower()]
        if split in found:
            raise DataError(f"{root} has both '{found[split].name}' and '{path.name}', which mean the same split.",
                            hint="Keep one of them.")
        found[split] = path
    if "train" not in found:
        raise DataError(f"{root} has {' and '.join(sorted(found))} but no 'train'.", hint=LAYOUT)
    return found


def _class_names(folders: list[Path]) -> tuple[str, ...]:
    """Names of class folders, which are the labels."""
    for path in folders:
        try:
            path.name.encode()
        except UnicodeEncodeError as problem:
            raise DataError(f"The name of the class folder {_legible(str(path))} is not UTF-8 text, so "
                            "it can be no label.",
                            hint="Rename the folder.") from problem
    return tuple(path.name for path in folders)


def _legible(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _load_splits(root: Path, parts: dict[str, Path], skipped: list[str]) -> tuple[list[Item], tuple[str, ...]]:
    labels = _class_names(_folders(parts["train"]))
    require_classes(labels, str(parts["train"]))
    items: list[Item] = []
    for split, part in parts.items():
        strangers = [path.name for path in _folders(part) if path.name not in labels]
        if strangers:
            raise DataError(f"{part} has the class '{strangers[0]}', which {parts['train']} lacks.",
                            hint=f"Every class must have training images; train has: {', '.join(labels[:20])}.")
        before = len(items)
        for folder in _folders(part):
            items += _class_items(root, folder, labels.index(folder.name), split, skipped)
        if len(items) == before:
            raise DataError(f"{part} holds no class folders.", hint=LAYOUT)
    return items, labels


def _load_classes(root: Path, skipped: list[str]) -> tuple[list[Item], tuple[str, ...]]:
    folders = _folders(root)
    if not folders:
        loose = next((path for path in sorted(root.iterdir()) if _is_image(path)), None)
        found = f"images without a class folder (such as {loose.name})" if loose else "no class folders and no images"
        raise DataError(f"{root} holds {found}.", hint=LAYOUT)
    if not any(_is_image(path) for folder in folders for path in _files(folder)):
        raise DataError(f"{root} holds no images.", hint=f"{LAYOUT} Known endings: {', '.join(sorted(IMAGE_ENDINGS))}.")
    labels = _class_names(folders)
    require_classes(labels, str(root))
    items = [item for index, folder in enumerate(folders) for item in _class_items(root, folder, index, None, skipped)]
    return items, labels


def _class_items(root: Path, folder: Path, label: int, split: str | None, skipped: list[str]) -> list[Item]:
    items = []
    for path in _files(folder):
        key = path.relative_to(root).as_posix()
        if _is_image(path):
            items.append(Item(key=key, label=label, split=split))
        else:
            skipped.append(key)
    if not items:
        raise DataError(f"The class folder {folder} holds no images.",
                        hint=f"Add images or remove the folder. Known endings: {', '.join(sorted(IMAGE_ENDINGS))}.")
    return items


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(parent) / name for name in names if not name.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_ENDINGS


def _notes(root: Path, parts: dict[str, Path], skipped: list[str]) -> tuple[str, ...]:
    notes = []
    if skipped:
        notes.append(f"{len(skipped)} file(s) in {root.resolve().name} that are no images were left out, such as "
                     f"{_legible(min(skipped))}.")
    others = [path.name for path in _folders(root) if parts and path not in parts.values()]
    if others:
        notes.append(f"Left out of {root.resolve().name}, since they are no split: {', '.join(others[:5])}.")
    renamed = [path.name for split, path in parts.items() if path.name != split]
    notes += [f"The folder '{name}' is read as the split '{SPLIT_ALIASES[name.lower()]}'." for name in renamed]
    return tuple(notes)
