"""docs/runtime.md describes every public name of edgetl.runtime as it is, and its examples run."""

import dataclasses
import inspect
import re
import shutil
from pathlib import Path

import pytest
from tiny_bundle import encode, make_bundle, make_photo

import edgetl.runtime
from edgetl import errors, plugins

PAGE = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text()
CLASSES = [name for name in edgetl.runtime.__all__ if inspect.isclass(getattr(edgetl.runtime, name))]
FUNCTIONS = [name for name in edgetl.runtime.__all__ if name not in CLASSES]


def section(name: str) -> str:
    """What stands below the heading of a name, up to the next heading."""
    found = re.findall(rf"^### `{name}`\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S)
    assert len(found) == 1, f"{name} has {len(found)} sections"
    return found[0]


def call(name: str, function: object) -> str:
    """How the page writes a call: names and defaults without types, e.g. `predict(source, *, top=5)`."""
    parameters = [one.replace(annotation=inspect.Parameter.empty)
                  for one in inspect.signature(function).parameters.values() if one.name != "self"]
    shown = str(inspect.Signature(parameters)).replace("'", '"')
    return f"`{name}{shown}`"


def methods(cls: type) -> dict[str, object]:
    found = {name: getattr(cls, name) for name in dir(cls) if not name.startswith("_")}
    return {name: value for name, value in found.items() if callable(value)}


def fields(cls: type) -> set[str]:
    """Fields of a dataclass, attributes that __init__ sets, and properties."""
    found = {name for name, value in vars(cls).items() if isinstance(value, property)}
    if dataclasses.is_dataclass(cls):
        return found | {one.name for one in dataclasses.fields(cls) if not one.name.startswith("_")}
    source = inspect.getsource(cls.__init__)
    names = re.findall(r"self\.([a-z]\w*)(?=[^=\n(]*=[^=])", source)
    return found | set(names)


def rows(text: str) -> set[str]:
    """Names in the first cells of the tables of fields."""
    tables = re.findall(r"^\| field \| \|\n\|---\|---\|\n((?:\|.*\n)+)", text, re.M)
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()]
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_public_name_has_a_section_and_no_other_has():
    assert set(re.findall(r"^### `(\w+)`$", PAGE, re.M)) == set(edgetl.runtime.__all__)
    assert set(edgetl.runtime.__all__) <= set(dir(edgetl.runtime))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_is_shown_as_it_is_called(name):
    assert call(name, getattr(edgetl.runtime, name)) in section(name)


def test_every_argument_of_load_is_explained():
    explained = re.findall(r"^\| `(\w+)` \|", section("load"), re.M)
    assert explained == list(inspect.signature(edgetl.runtime.load).parameters)


@pytest.mark.parametrize("name", CLASSES)
def test_the_methods_of_a_class_are_shown_as_they_are_called(name):
    cls = getattr(edgetl.runtime, name)
    shown = re.findall(r"^\| (`\w+\(.*?\)`) \|", section(name), re.M)
    assert sorted(shown) == sorted(call(method, value) for method, value in methods(cls).items())


@pytest.mark.parametrize("name", CLASSES)
def test_the_fields_of_a_class_are_named(name):
    assert rows(section(name)) == fields(getattr(edgetl.runtime, name))


@pytest.mark.parametrize("name", ["Batching", "Drift", "Slot"])
def test_what_users_make_is_shown_as_it_is_made(name):
    assert call(name, getattr(edgetl.runtime, name)) in section(name)


def test_errors_that_are_named_exist_and_those_of_the_runtime_are_named():
    table = PAGE.partition("## Errors")[2]
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\|([^|]*)\|", table, re.M)))) - {"error"}
    assert all(issubclass(getattr(errors, name), errors.EdgetlError) for name in named)
    assert {"InputError", "BundleError", "BackendUnavailable", "Overloaded", "GateFailed"} <= named


@pytest.mark.parametrize("name", plugins.names("backends"))
def test_the_options_of_every_backend_are_named(name):
    source = (Path(edgetl.runtime.__file__).parents[1] / "backends" / f"{name.replace('-', '_')}.py").read_text()
    text = source.partition("Options:")[2].partition('"""')[0].partition("\n\n")[0]
    options = re.findall(r"^    (\w+): ", text, re.M)
    table = PAGE.partition("## Backends")[2].partition("\n## ")[0]
    assert f"`{name}`" in table
    assert options
    for option in options:
        assert f"| `{option}` |" in table


def test_links_lead_somewhere():
    anchors = {re.sub(r"[^\w -]", "", head).strip().lower().replace(" ", "-")
               for head in re.findall(r"^#+ (.*)$", PAGE, re.M)}
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif not link.startswith("https://"):
            assert (Path(__file__).parents[2] / "docs" / link).exists(), link


def test_the_examples_run(tmp_path, monkeypatch, capsys):
    from edgetl.runtime import archive

    monkeypatch.chdir(tmp_path)
    make_bundle(tmp_path / "BUNDLE")
    with Path("new.edgetl").open("wb") as stream:
        archive.write(edgetl.runtime.open_bundle("BUNDLE"), stream)
    Path("photo.jpg").write_bytes(encode(make_photo(1), "JPEG"))
    Path("photos").mkdir()
    for number in range(3):
        shutil.copy("photo.jpg", f"photos/{number}.jpg")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    assert len(blocks) == 6
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
    assert "2.jpg" in capsys.readouterr().out


def test_this_test_sees_what_is_missing():
    class Example:
        def __init__(self, one: int) -> None:
            self.one, self.two = one, 2
            self._hidden = self.two == 3

        def go(self, *, far: str = "yes") -> None: ...

    assert fields(Example) == {"one", "two"}
    assert call("go", Example.go) == '`go(*, far="yes")`'
    assert rows("| field | |\n|---|---|\n| `a`, `b` | x |\n") == {"a", "b"}
