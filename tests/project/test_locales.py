"""The texts in locales/ name exactly the nodes, inputs and outputs that there are, in English and in Chinese."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from exact_vae.nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ["en", "zh"]
CHINESE = re.compile("[\u4e00-\u9fff]")
LABELS = {"memory": "memory (GiB, 0: automatic)"}  # What a widget is called where its name does not say enough.
UNTRANSLATED = {"VAE", "Latent"}  # Words that the host's own Chinese texts leave as they are.


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def inputs_of(node: Any) -> dict[str, Any]:
    """Inputs that the user sees, in order."""
    groups = node.INPUT_TYPES()
    return {**groups.get("required", {}), **groups.get("optional", {})}


def leaves(value: dict[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for key, entry in value.items():
        if isinstance(entry, dict):
            yield from leaves(entry, f"{path}{key}.")
        else:
            yield path + key, entry


def test_there_is_no_other_language_or_file() -> None:
    found = sorted(path.relative_to(ROOT / "locales").as_posix() for path in (ROOT / "locales").rglob("*.json"))
    assert found == [f"{language}/{name}.json" for language in LANGUAGES for name in ("nodeDefs", "settings")]


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_nodes_are_named(language: str) -> None:
    assert sorted(read(language, "nodeDefs")) == sorted(NODE_CLASS_MAPPINGS)


@pytest.mark.parametrize("node_id", sorted(NODE_CLASS_MAPPINGS))
@pytest.mark.parametrize("language", LANGUAGES)
def test_inputs_and_outputs_are_named_and_explained(language: str, node_id: str) -> None:
    node, texts = NODE_CLASS_MAPPINGS[node_id], read(language, "nodeDefs")[node_id]
    assert list(texts) == ["display_name", "description", "inputs", "outputs"]
    assert list(texts["inputs"]) == list(inputs_of(node))
    assert list(texts["outputs"]) == [str(number) for number in range(len(node.RETURN_TYPES))]
    for entry in [*texts["inputs"].values(), *texts["outputs"].values()]:
        assert list(entry) == ["name", "tooltip"]


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("name", ["nodeDefs", "settings"])
def test_no_text_is_empty(language: str, name: str) -> None:
    assert [path for path, text in leaves(read(language, name)) if not text.strip()] == []


@pytest.mark.parametrize("node_id", sorted(NODE_CLASS_MAPPINGS))
def test_english_is_what_the_nodes_say(node_id: str) -> None:
    """The host shows the file instead of the class, so the two must not drift apart."""
    node, texts = NODE_CLASS_MAPPINGS[node_id], read("en", "nodeDefs")[node_id]
    assert texts["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[node_id]
    assert texts["description"] == node.DESCRIPTION
    said = {name: options[1]["tooltip"] for name, options in inputs_of(node).items()}
    assert {name: entry["tooltip"] for name, entry in texts["inputs"].items()} == said
    shown = {name: LABELS.get(name, name) for name in said}
    assert {name: entry["name"] for name, entry in texts["inputs"].items()} == shown
    assert tuple(entry["tooltip"] for entry in texts["outputs"].values()) == node.OUTPUT_TOOLTIPS


@pytest.mark.parametrize("language", LANGUAGES)
def test_memory_is_shown_with_its_unit_and_what_0_means(language: str) -> None:
    nodes = [texts["inputs"]["memory"] for texts in read(language, "nodeDefs").values() if "memory" in texts["inputs"]]
    assert len(nodes) == 7
    for entry in nodes:
        assert "GiB" in entry["name"]
        assert {"en": "0: automatic", "zh": "0 为自动"}[language] in entry["name"]


@pytest.mark.parametrize("name", ["nodeDefs", "settings"])
def test_chinese_translates_every_text(name: str) -> None:
    english, chinese = dict(leaves(read("en", name))), dict(leaves(read("zh", name)))
    assert list(chinese) == list(english)
    left = {path: text for path, text in chinese.items() if not CHINESE.search(text) and text not in UNTRANSLATED}
    assert left == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_settings_are_those_of_the_scripts(language: str) -> None:
    """The host looks a setting up by its id with dots as underscores."""
    scripts = "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "js").glob("*.js")))
    ids = re.findall(r'SETTING = "(ExactVAE\.\w+)"', scripts)
    assert ids
    assert sorted(read(language, "settings")) == sorted(name.replace(".", "_") for name in ids)


def test_the_english_setting_is_what_the_script_says() -> None:
    script = (ROOT / "js" / "report.js").read_text(encoding="utf-8")
    (texts,) = read("en", "settings").values()
    assert f'name: "{texts["name"]}"' in script
    assert f'tooltip: "{texts["tooltip"]}"' in script
