"""Keys of which one would overrule the other: the one that is said last holds, and of two said together neither.

What a command line says replaces what a file says, also where the file says it by another key. Two keys of one file, or
two words of one command line, that contradict each other are refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from .config import SECTIONS
from .foreign import PARAMS_THERE, translate

Tree = dict[str, Any]
Path = tuple[str, ...]

BESIDE_PARAMS = ("embed_dim", "monitor", "lossconfig", "ddconfig", "ckpt_path")
"""Arguments of the model that old files have one level higher."""
_COLUMNS = {"crop": 1, "batch_size": 2}
"""Where a stage has what these keys say."""
_RATE: Path = ("optimizer", "lr")
_BASE_RATE: Path = ("model", "base_learning_rate")
_TARGETS: dict[Path, tuple[str, str]] = {
    ("model", "params", "lossconfig", "target"): ("params", "AutoencoderLoss"),
    ("optimizer", "target"): ("params", "AdamW"),
    ("optimizer", "discriminator_target"): ("discriminator_params", "Adam"),
}
"""A class that is named -> the key beside it that has its arguments, and the class where none is named."""


def our_words(path: Path, value: Any) -> dict[Path, Any]:
    """A key of the command line in this project's words, where it is one of another trainer's; else as it is.

    In a file ours come before theirs; on the command line theirs must not lose against what the file says in ours.
    """
    if path[:1] == ("model",) and len(path) > 1 and path[1] in BESIDE_PARAMS:
        return {("model", "params", *path[1:]): value}
    if path[:2] == ("model", "params") and len(path) > 2 and path[2] in PARAMS_THERE:
        return {("model", "params", PARAMS_THERE[path[2]], *path[3:]): value}
    foreign = path[:1] == ("lightning",) or path[:2] == ("data", "params")
    if not foreign or (isinstance(value, str) and "${" in value):
        return {path: value}
    tree: Any = value
    for key in reversed(path):
        tree = {key: tree}
    native, unused = translate(tree)
    found = {(name, key): item for name in SECTIONS for key, item in (native.get(name) or {}).items()}
    return {path: value} if unused else found


def make_room(tree: Tree, said: Mapping[Path, Any]) -> list[str]:
    """Take out of a file's content what the keys that are `said` on the command line replace; changed in place.

    Returns: one text for each key of the file that is not used as it stands there.
    """
    notes = _change_stages(tree, said)
    for one, other in ((_RATE, _BASE_RATE), (_BASE_RATE, _RATE)):
        if said.get(one) is not None and other not in said and _take(tree, other) is not None:
            notes.append(f"{'.'.join(one)} replaces {'.'.join(other)} of the file")
    for path, (key, usual) in _TARGETS.items():
        given = (*path[:-1], key)
        before = str(_at(tree, path) or usual)
        if path in said and _last(said[path]) != _last(before) and given not in said and _take(tree, given):
            notes.append(f"{'.'.join(given)} of the file are not used: they are {_last(before)}'s")
    return notes


def contradictions(tree: Mapping[str, Any], said: Collection[Path] = ()) -> list[str]:
    """The problems of a whole content, file and command line, in our words: keys of which one overrules the other.

    Args:    said: the keys of the command line, of which stages replace the file's sizes.
    """
    problems = list[str]()
    stages = _stages(tree)
    for key, column in _COLUMNS.items():
        value = _at(tree, ("data", key))
        replaced = ("data", "stages") in said and ("data", key) not in said
        if value is not None and not replaced and any(stage[column] != value for stage in stages):
            problems.append(
                f"data.{key}: expected either data.{key} or data.stages, got {value} and {stages}: "
                "remove one of them; data.stages=[] has one crop and batch size throughout"
            )
    rates = [_at(tree, path) for path in (_RATE, _BASE_RATE)]
    if None not in rates:
        problems.append(
            f"optimizer.lr: expected either optimizer.lr or model.base_learning_rate, got {rates[0]} and {rates[1]}: "
            "remove one of them"
        )
    return problems


def twice_given(model: Mapping[str, Any]) -> list[str]:
    """The problems of a model's arguments that stand beside its `params` and, otherwise, in them, too."""
    params = cast(Tree, model.get("params") or {})
    return [
        f"model.{name}: expected it once, got another one in model.params.{name}: remove one of them"
        for name in BESIDE_PARAMS
        if name in model and name in params and model[name] != params[name]
    ]


def _change_stages(tree: Tree, said: Mapping[Path, Any]) -> list[str]:
    """A size on the command line holds in all stages of the file."""
    stages = _stages(tree)
    sizes = {key: said["data", key] for key in _COLUMNS if isinstance(said.get(("data", key)), (int, float))}
    if not stages or not sizes or ("data", "stages") in said:
        return []
    changed = [list(stage) for stage in stages]
    for key, size in sizes.items():
        for stage in changed:
            stage[_COLUMNS[key]] = size
    words = " and ".join(f"data.{key}={size}" for key, size in sizes.items())
    if len(sizes) == len(_COLUMNS):
        _take(tree, ("data", "stages"))
        return [f"{words} replace data.stages of the file"]
    tree["data"]["stages"] = changed
    return [f"{words} holds in all stages of the file, data.stages={changed}; data.stages=[] has none"]


def _stages(tree: Mapping[str, Any]) -> list[Sequence[Any]]:
    """The stages of a content; none where they are not what they should be, which is told elsewhere."""
    stages = _at(tree, ("data", "stages"))
    rows = cast("list[Any]", list(stages)) if isinstance(stages, (list, tuple)) else []
    return rows if all(isinstance(row, (list, tuple)) and len(cast("list[Any]", row)) == 3 for row in rows) else []


def _at(tree: Any, path: Path) -> Any:
    for key in path:
        tree = cast(Tree, tree).get(key) if isinstance(tree, Mapping) else None
    return tree


def _take(tree: Tree, path: Path) -> Any:
    """What stands there, taken out."""
    section = _at(tree, path[:-1])
    return cast(Tree, section).pop(path[-1], None) if isinstance(section, dict) else None


def _last(target: Any) -> str:
    return str(target).rpartition(".")[2]
