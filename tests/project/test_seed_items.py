"""docs/seed_items.md is true: its places are there with their arguments, its tests exist, no item is left out."""

import ast
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "seed_items.md"
DOCUMENTS = ROOT.parent / "shared" / "seeds"


class Row(NamedTuple):
    item: str
    place: str
    tests: list[str]
    difference: str


class Named(NamedTuple):
    """`name(a, b)` or `name: a, b`."""

    name: str
    arguments: list[str]
    attributes: list[str]


def read_rows() -> list[Row]:
    found: list[Row] = []
    for line in TABLE.read_text(encoding="utf-8").splitlines():
        if line.startswith("| `"):
            item, place, tests, difference = (cell.strip() for cell in line.strip("|").split("|"))
            found.append(Row(item.strip("`"), place.strip("`"), re.findall(r"`([^`]+)`", tests), difference))
    return found


def read(text: str) -> Named:
    match = re.fullmatch(r"([^(:]+)(?:\(([^)]*)\))?(?:: (.*))?", text)
    assert match, text
    return Named(match[1], *([part.strip() for part in (match[i] or "").split(",") if part] for i in (2, 3)))


ROWS = read_rows()
every_row = pytest.mark.parametrize(
    "row",
    [pytest.param(row, id=row.item[:60]) for row in ROWS],
)


def find(path: str) -> Any:
    """The object of a dotted path below the package."""
    parts = path.split(".")
    for count in range(len(parts), -1, -1):
        try:
            owner: Any = importlib.import_module(".".join(["exact_vae", *parts[:count]]))
        except ModuleNotFoundError as error:
            if str(error.name).partition(".")[0] in ("lightning", "pytorch_lightning", "yaml"):  # of the extra `train`
                pytest.skip(f"needs {error.name}")
            continue
        for part in parts[count:]:
            owner = getattr(owner, part)
        return owner
    raise AssertionError(path)


def parameters_of(found: Any) -> set[str]:
    """Of a function, or of a class's constructor."""
    if inspect.isclass(found):
        found = found.__init__ if found.__init__ is not object.__init__ else found.__new__
    return set(inspect.signature(found).parameters)


def has_attribute(kind: Any, name: str) -> bool:
    """On the class, or set somewhere in the files of its classes."""
    if hasattr(kind, name):
        return True
    own = [base for base in kind.__mro__ if base.__module__.startswith("exact_vae")]
    sources = {inspect.getsource(importlib.import_module(base.__module__)) for base in own}
    helpers = inspect.getsource(importlib.import_module("exact_vae.vae_model.families.ldm.coder"))
    return any(re.search(rf"\b(self|network)\.{name}\b", source) for source in (*sources, helpers))


def test_the_table_has_its_rows() -> None:
    assert len(ROWS) > 130
    assert len({row.item for row in ROWS}) == len(ROWS)
    assert "missing" not in {word for row in ROWS for word in row.place.lower().split()}


@every_row
def test_the_place_is_there(row: Row) -> None:
    if row.place.startswith("exact-vae "):
        from exact_vae.__main__ import make_parser

        (commands,) = (action for action in make_parser()._actions if action.dest == "command")
        assert row.place.split()[1] in (commands.choices or {})
        return
    place = read(row.place)
    found = find(place.name)
    assert set(place.arguments) <= (parameters_of(found) if place.arguments else set())
    assert [name for name in place.attributes if not has_attribute(found, name)] == []


@every_row
def test_what_an_item_has_its_place_has(row: Row) -> None:
    """But for lists of further arguments, which have other names, and where a difference is told."""
    if row.difference or row.place.startswith("exact-vae "):
        return
    item, place = read(row.item), read(row.place)
    free = re.compile(r"\w*(args|kwargs)")
    assert [name for name in item.arguments if name not in place.arguments and not free.fullmatch(name)] == []
    assert [name for name in item.attributes if name not in place.attributes] == []


@every_row
def test_the_tests_exist(row: Row) -> None:
    assert row.tests
    for name in row.tests:
        file, _, function = name.partition("::")
        assert re.search(rf"^def {function}\(", (ROOT / "tests" / file).read_text(encoding="utf-8"), re.MULTILINE), name


def table() -> dict[str, set[str]]:
    """Item -> its arguments and attributes, of all rows about it."""
    found: dict[str, set[str]] = {}
    for row in ROWS:
        item = read(row.item)
        found.setdefault(item.name, set()).update(item.arguments, item.attributes)
    return found


def require_documents() -> Path:
    if not DOCUMENTS.is_dir():
        pytest.skip("the folder ../shared/seeds with the four documents is absent")
    return DOCUMENTS


@pytest.mark.parametrize("name", ["000_ldm_autoencoder", "001_ldm_diffusionmodules_model"])
def test_no_item_of_the_class_documents_is_left_out(name: str) -> None:
    known, left_out = table(), []
    owner, item = "", ""
    for line in (require_documents() / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        kind = re.match(r"## ClassDef (\w+)", line)
        function = re.match(r"(##+) FunctionDef (\w+)\(", line)
        argument = re.match(r"· \*{0,2}(\w+)\s*:", line)
        if kind:
            owner = item = kind[1]
        elif function:
            owner = owner if function[1] == "###" else ""
            item = f"{owner}.{function[2]}" if owner else function[2]
        if (kind or function) and item not in known:
            left_out.append(item)
        elif argument and argument[1] not in known.get(item, set()):
            left_out.append(f"{item} {argument[1]}")
    assert left_out == []


def test_no_item_of_the_training_document_is_left_out() -> None:
    text, known = (require_documents() / "002_lightning_vae_readme.txt").read_text(encoding="utf-8"), table()
    left_out: list[str] = []
    for line in text.splitlines():
        call = re.match(r"(?:- \[`)?(\w+)\(([^)]*)\)", line)
        key = re.match(r"- \[`(\w+)`\]", line)
        if call and (line.startswith("- [`") or call[1] == "AutoEncoderKL"):
            item = call[1] if call[1] == "AutoEncoderKL" else f"AutoEncoderKL.{call[1]}"
            names = {part.split("=")[0].strip() for part in call[2].split(",") if part}
            left_out += sorted(f"{item} {name}" for name in names - known.get(item, set()))
            left_out += [] if item in known else [item]
        elif key and key[1] not in known["ddconfig"] | {"AutoEncoderKL"}:
            left_out.append(f"ddconfig {key[1]}")
        extension = re.match(r"- \*\*([\w &]+)\*\*: (?:Pass|Add|Implement|Swap|Extend)", line)
        if extension and extension[1] not in known:
            left_out.append(extension[1])
    assert left_out == []


def test_no_item_of_the_tiny_document_is_left_out() -> None:
    text, known = (require_documents() / "003_diffusers_autoencoder_tiny.txt").read_text(encoding="utf-8"), table()
    left_out: list[str] = []
    kinds = {node.name: node for node in ast.parse(text.split("```")[1][2:]).body if isinstance(node, ast.ClassDef)}
    assert kinds.keys() <= known.keys() | {"AutoencoderTiny"}
    for node in ast.walk(kinds["AutoencoderTiny"]):
        if isinstance(node, ast.FunctionDef):
            item = f"AutoencoderTiny.{node.name}"
            names = {argument.arg for argument in node.args.args} - {"self"}
            left_out += sorted(f"{item} {name}" for name in names - known.get(item, set()))
            left_out += [] if item in known else [item]
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            left_out += [] if node.attr in known["AutoencoderTiny"] | {"gradient_checkpointing"} else [node.attr]
    assert left_out == []
