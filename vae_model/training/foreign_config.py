"""Configurations of latent-diffusion and generative-models, and Lightning's words, as one of ours.

What has a counterpart is taken, under `data.params`, `lightning` and the names of their engines; what has none is
told by its path. Settings that are ours already stay as they are and come first.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, cast

from .config import SECTIONS, ConfigError
from .foreign_model import translate_model
from .lengths import settle_length
from .lightning_words import UNUSED, WORDS, Settings, settings_of

Tree = dict[str, Any]
Path = tuple[str, ...]

_SIZES = ("size", "crop_size", "resolution", "image_size")
_PLACES = (
    "training_images_list_file", "test_images_list_file", "images_list_file", "data_root", "root", "folder",
    "image_folder", "image_root", "data_dir", "img_dir", "txt_file",
)  # fmt: skip
_REFERENCE = re.compile(r"\$\{([\w.\-]+)\}")


def translate(tree: Tree) -> tuple[Tree, list[str]]:
    """(the same in our sections, paths of what is not used). What is ours already comes back unchanged.

    Raises: ConfigError for what would train something else than is asked for.
    """
    tree = cast(Tree, _resolved(tree, tree))
    theirs = "lightning" in tree or _is_foreign(tree.get("data"))
    found: Settings = {}
    unused = settle_length(tree)
    native = {name: dict(section) if isinstance(section, dict) else section for name, section in tree.items()}
    if "lightning" in native:
        _take_lightning(native.pop("lightning"), found, unused)
    _take_trainer(native, found, unused)  # after it, as what is said here counts
    if _is_foreign(native.get("data")):
        _take_data(native["data"], found, unused)
    if isinstance(native.get("model"), dict):
        translate_model(native["model"], found, unused, whole_file=theirs)
    if theirs:
        unused += [name for name in native if name not in SECTIONS]
        native = {name: section for name, section in native.items() if name in SECTIONS}
    ours = {name: dict(section) for name, section in native.items() if isinstance(section, dict)}
    for (section, key), value in found.items():
        if native.get(section) is None:
            native[section] = {}
        if isinstance(native[section], dict) and ours.get(section, {}).get(_RIVALS.get((section, key), key)) is None:
            native[section].setdefault(key, value)
    return native, unused


_RIVALS = {
    ("optimizer", "params"): "target",
}
"""Settings that are not taken where one of ours is what they belong to."""


def _is_foreign(data: Any) -> bool:
    return isinstance(data, dict) and bool(cast(Tree, data).keys() & {"target", "params"})


def _resolved(value: Any, root: Tree, depth: int = 0) -> Any:
    """Without OmegaConf's references: ${a.b} is what stands at a.b."""
    if isinstance(value, dict):
        return {key: _resolved(item, root, depth) for key, item in cast(Tree, value).items()}
    if isinstance(value, list):
        return [_resolved(item, root, depth) for item in cast("list[Any]", value)]
    whole = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if whole is None:
        return value
    target: Any = root
    for key in whole[1].split("."):
        target = cast(Tree, target).get(key) if isinstance(target, dict) else None
    if target is None or depth > 8:
        raise ConfigError(f"config: expected a reference to a key of the file, got {value}: write the value itself")
    return _resolved(target, root, depth + 1)


def _take(settings: Settings | None, path: Path, found: Settings, unused: list[str]) -> None:
    """What a value of theirs is in our words; None where it is not used."""
    if settings is None:
        unused.append(".".join(path))
    else:
        found |= settings


def _take_trainer(tree: Tree, found: Settings, unused: list[str]) -> None:
    """Lightning's words in a `trainer` section of ours."""
    section = tree.get("trainer")
    if not isinstance(section, dict):
        return
    section = cast(Tree, section)
    for name in [name for name in section if name in WORDS or name in UNUSED]:
        _take(settings_of(name, section.pop(name)), ("trainer", name), found, unused)


def _take_lightning(section: Any, found: Settings, unused: list[str]) -> None:
    """`lightning.trainer` and `strategy`, how often to save, how many pictures to show."""
    for path, value in _entries(section, ("lightning",)):
        settings: Settings | None = None
        if len(path) == 3 and path[1] == "trainer":
            settings = settings_of(path[2], value)
        elif path == ("lightning", "strategy"):
            settings = settings_of("strategy", value)
        elif path == ("lightning", "modelcheckpoint", "params", "every_n_train_steps"):
            settings = {} if ("trainer", "check_every") in found else {("trainer", "check_every"): value}
        elif path[-1] == "max_images" and path[1] == "callbacks":
            settings = {("output", "grids"): value}
        _take(settings, path, found, unused)


def _entries(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """The values of nested mappings with their paths; a strategy and the Trainer's values in one piece."""
    whole = path == ("lightning", "strategy") or (path[:2] == ("lightning", "trainer") and len(path) == 3)
    if isinstance(tree, dict) and not whole:
        for key, value in cast(Tree, tree).items():
            yield from _entries(value, (*path, key))
    else:
        yield path, tree


def _take_data(section: Tree, found: Settings, unused: list[str]) -> None:
    """A data module's batch size, workers, sizes and folders; its classes and their other arguments are not used."""
    foreign = {key: section.pop(key) for key in ("target", "params") if key in section}
    for path, value in _leaves(foreign, ("data",)):
        place = "val" if any(part in ("validation", "val", "test") for part in path) else "train"
        name, settings = path[-1], cast("Settings | None", None)
        if name in ("batch_size", "num_workers") and place == "train":
            settings = {("data", "workers" if name == "num_workers" else name): value}
        elif name in _SIZES and isinstance(value, int):
            settings = {("data", "crop" if place == "train" else "val_crop"): value}
        elif name in _PLACES and isinstance(value, str):
            settings = {("data", place): value}
        _take(None if settings is None or settings.keys() & found.keys() else settings, path, found, unused)


def _leaves(tree: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    """The values of nested mappings and lists with their paths, numbers of list items left out of these."""
    if isinstance(tree, Mapping) and tree:
        for key, value in cast("Mapping[str, Any]", tree).items():
            yield from _leaves(value, (*path, key))
    elif isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in cast("list[Any]", tree)):
        for item in cast("list[Any]", tree):
            yield from _leaves(item, path)
    else:
        yield path, tree
