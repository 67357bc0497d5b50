"""From a YAML file and `key=value` words to a checked TrainConfig.

The file is data: nothing it names is imported, but for a loss of one's own (see `losses`). The shape of the seed's
files is read too: `model.target` is known by its last part, `embed_dim` and `monitor` may stand beside `params`. Those
of latent-diffusion and generative-models, and Lightning's words, are translated by `foreign`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_type_hints

from ..notes import tell
from .arguments import checked_values, unknown_names
from .config import SECTIONS, ConfigError, TrainConfig, require
from .foreign import PARAMS_THERE, translate
from .key_places import advice_on_option, advice_on_word
from .lightning_words import LENGTHS, given_lengths, is_length, require_one_length, settings_of, take_lengths
from .overruled import BESIDE_PARAMS, contradictions, make_room, our_words, twice_given

logger = logging.getLogger(__name__)

_LISTS = {("data", "train"), ("data", "val"), ("data", "stages")}
"""Of these null is an empty list."""


def bundled_configs() -> dict[str, Path]:
    """The configurations that come with the project, by name."""
    folder = Path(__file__).resolve().parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def read_config(name: str, overrides: Sequence[str] = ()) -> TrainConfig:
    """The configuration of a file, or of a bundled one by name, with `section.key=value` words applied.

    What the words say holds, also where the file says it by another key: a length in batches replaces one in epochs,
    a crop that of all stages, `optimizer.lr` a `model.base_learning_rate`. What of the file is not used is told.

    Raises: ConfigError, in one line, with everything that is wrong.
    """
    for word in overrides:
        if word.startswith("-"):
            raise ConfigError(f"config: expected key=value, got {word}: {advice_on_option(word)}")
    tree = _read(name)
    said = _said(overrides, tree)
    _lift(tree)
    tell("config", _repeated(overrides) + make_room(tree, said))
    for place, setting in said.items():
        _set(tree, place, setting)
    return _checked(tree, said)


def _repeated(overrides: Sequence[str]) -> list[str]:
    """What to say of words that are on the command line twice, as scripts have them in front of what one adds."""
    pairs = [word.partition("=") for word in overrides]
    last, first = ({key: text for key, _, text in some} for some in (pairs, reversed(pairs)))
    return [
        f"{key} is on the command line more than once, {first[key]} and {text}: the last one holds"
        for key, text in last.items()
        if first[key] != text
    ]


def _said(overrides: Sequence[str], tree: dict[str, Any]) -> dict[tuple[str, ...], Any]:
    """The values of the command line by their places in our words; a length is taken out of the file's content."""
    import yaml

    lengths: dict[str, Any] = {}
    said: dict[tuple[str, ...], Any] = {}
    for word in overrides:
        key, equals, text = word.partition("=")
        if not equals or not key:
            raise ConfigError(f"config: expected key=value, got {word!r}: {advice_on_word(word)}")
        try:
            value = yaml.load(text, _loader())
        except yaml.YAMLError:
            value = text
        keys = tuple(key.split("."))
        settings = settings_of(keys[1], value) if keys[0] == "trainer" and len(keys) == 2 else None
        if is_length(keys):
            lengths[key] = value
            given = given_lengths({key: value})
            if given:
                take_lengths(tree)
            settings = {("trainer", LENGTHS[keys[-1]]): given.get(key)}
        for place, setting in (our_words(keys, value) if settings is None else settings).items():
            said.pop(place, None)  # the later one also stands in its place
            said[place] = setting
    require_one_length(given_lengths(lengths))
    return said


def _read(name: str) -> dict[str, Any]:
    import yaml

    path = bundled_configs().get(name, Path(name))
    if not path.is_file():
        known = ", ".join(bundled_configs())
        raise ConfigError(f"config: expected a YAML file or one of {known}, got {name!r}: check the name")
    try:
        content: Any = yaml.load(path.read_text(encoding="utf-8"), _loader())
    except UnicodeDecodeError as error:
        raise ConfigError(f"config: expected a YAML file, got {path}, which is no text: name another file") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"config: expected YAML in {path}, got a mistake: correct it ({reason})") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"config: expected sections in {path}, got {type(content).__name__}: see the bundled ones")
    return _copy(cast("Mapping[str, Any]", content))


def _loader() -> Any:
    """PyYAML's safe one, to which also 1e-6 is a number, as in newer YAML: it wants 1.0e-6; and a key that stands twice
    in a section is a mistake: PyYAML would take the last one without a word."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            names = [str(key.value) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
            for name in names:
                if names.count(name) > 1:
                    raise yaml.constructor.ConstructorError(None, None, f"{name} stands twice", node.start_mark)
            return super().construct_mapping(node, deep)

    number = re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


def _copy(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {str(key): _copy(value) for key, value in cast("Mapping[Any, Any]", tree).items()}
    return tree


def _set(tree: dict[str, Any], keys: Sequence[str], value: Any) -> None:
    """tree["a"]["b"] = value; what stands in the way is replaced."""
    for key in keys[:-1]:
        if not isinstance(tree.get(key), dict):
            tree[key] = {}
        tree = tree[key]
    tree[keys[-1]] = value


def _lift(tree: dict[str, Any]) -> None:
    """Put the model's arguments that stand beside its `params` into these."""
    model = tree.get("model")
    if not isinstance(model, Mapping):
        return
    section = dict(cast("Mapping[str, Any]", model))
    params: Any = section.get("params") or {}
    if isinstance(params, Mapping):
        require(twice_given(section))
        above = {name: section.pop(name) for name in BESIDE_PARAMS if name in section}
        below = dict(cast("Mapping[str, Any]", params))
        for theirs, ours in PARAMS_THERE.items():  # so that the command line finds them by either name
            if theirs in below and ours not in below:
                below[ours] = below.pop(theirs)
        section["params"] = above | below
    tree["model"] = section


def config_from(tree: Mapping[str, Any]) -> TrainConfig:
    """A TrainConfig from nested mappings; ConfigError naming every unknown key and every wrong type, and keys that
    contradict each other."""
    return _checked(dict(tree), ())


def _checked(tree: dict[str, Any], said: Collection[tuple[str, ...]]) -> TrainConfig:
    _lift(tree)
    tree, unused = translate(tree)
    if unused:
        logger.warning("config: not used here: %s", ", ".join(unused))
    problems = unknown_names(tree, SECTIONS, "")
    sections: dict[str, tuple[Any, Mapping[str, Any]]] = {}
    for name, kind in get_type_hints(TrainConfig).items():
        section = tree.get(name)
        if isinstance(section, Mapping):
            given = {key: value for key, value in section.items() if not (value is None and (name, key) in _LISTS)}
            sections[name] = (kind, checked_values(given, get_type_hints(kind), name, problems))
        elif section is not None:
            problems.append(f"{name}: expected a section, got {section!r}: indent its keys below it")
    require(problems + contradictions(tree, said))
    return TrainConfig(**{name: kind(**values) for name, (kind, values) in sections.items()})
