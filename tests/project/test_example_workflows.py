"""The example workflows: each is whole in itself, of nodes that a fresh installation has, and says what it needs."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json"))
NOTES = ("Note", "MarkdownNote")

CORE: dict[str, tuple[dict[str, str], list[str]]] = {
    "LoadImage": ({"image": "MENU", "upload": "BROWSER"}, ["IMAGE", "MASK"]),
    "ImageScale": (
        {"image": "IMAGE", "upscale_method": "MENU", "width": "INT", "height": "INT", "crop": "MENU"},
        ["IMAGE"],
    ),
    "ImageScaleBy": ({"image": "IMAGE", "upscale_method": "MENU", "scale_by": "FLOAT"}, ["IMAGE"]),
    "ImageBlend": ({"image1": "IMAGE", "image2": "IMAGE", "blend_factor": "FLOAT", "blend_mode": "MENU"}, ["IMAGE"]),
    "ImageToMask": ({"image": "IMAGE", "channel": "MENU"}, ["MASK"]),
    "ThresholdMask": ({"mask": "MASK", "value": "FLOAT"}, ["MASK"]),
    "MaskToImage": ({"mask": "MASK"}, ["IMAGE"]),
    "SolidMask": ({"value": "FLOAT", "width": "INT", "height": "INT"}, ["MASK"]),
    "MaskComposite": (
        {"destination": "MASK", "source": "MASK", "x": "INT", "y": "INT", "operation": "MENU"},
        ["MASK"],
    ),
    "PreviewImage": ({"images": "IMAGE"}, []),
    "SaveImage": ({"images": "IMAGE", "filename_prefix": "STRING"}, []),
    "VAELoader": ({"vae_name": "MENU"}, ["VAE"]),
    "VAEDecode": ({"samples": "LATENT", "vae": "VAE"}, ["IMAGE"]),
    "VAEEncode": ({"pixels": "IMAGE", "vae": "VAE"}, ["LATENT"]),
    "VAEDecodeTiled": (
        {"samples": "LATENT", "vae": "VAE"}
        | dict.fromkeys(("tile_size", "overlap", "temporal_size", "temporal_overlap"), "INT"),
        ["IMAGE"],
    ),
}
"""Inputs in order and outputs of the core's nodes that the examples use; the same in v0.3.64 and newer."""
WIDGETS = {"MENU": str, "BROWSER": str, "INT": int, "FLOAT": (int, float), "STRING": str, "BOOLEAN": bool}


def signatures() -> dict[str, tuple[dict[str, str], list[str]]]:
    """Those of the core, and ours as the node classes tell them."""
    from exact_vae import NODE_CLASS_MAPPINGS

    known = dict(CORE)
    for name, kind in NODE_CLASS_MAPPINGS.items():
        groups = kind.INPUT_TYPES()
        inputs = {**groups.get("required", {}), **groups.get("optional", {})}
        types = {key: "MENU" if isinstance(spec[0], list) else spec[0] for key, spec in inputs.items()}
        known[name] = (types, list(kind.RETURN_TYPES))
    return known


def problems(workflow: dict[str, Any]) -> list[str]:
    """What is wrong with a workflow, in words."""
    found: list[str] = []
    known, nodes = signatures(), {node["id"]: node for node in workflow["nodes"]}
    links = {link[0]: link for link in workflow["links"]}
    if len(nodes) != len(workflow["nodes"]) or len(links) != len(workflow["links"]):
        found.append("an id is used twice")
    if workflow["last_node_id"] < max(nodes) or workflow["last_link_id"] < max(links):
        found.append("a last id is smaller than an id")
    for node in nodes.values():
        if node["type"] in NOTES:
            continue
        if node["type"] not in known:
            found.append(f"{node['type']} is neither ours nor one of the core's listed nodes")
            continue
        found += node_problems(node, *known[node["type"]], links)
    for number, start, slot, end, end_slot, kind in links.values():
        source, target = nodes.get(start), nodes.get(end)
        if source is None or target is None:
            found.append(f"link {number} goes to a node that is not there")
            continue
        out = source["outputs"][slot]
        if number not in (out["links"] or []) or out["type"] != kind:
            found.append(f"link {number} is not known to the output of {source['type']}")
        into = target["inputs"][end_slot]
        if into["link"] != number or into["type"] != kind:
            found.append(f"link {number} is not known to the input of {target['type']}")
    return found


def node_problems(
    node: dict[str, Any], inputs: dict[str, str], outputs: list[str], links: dict[int, list[Any]]
) -> list[str]:
    """What is wrong with one node, its values and its sockets."""
    found: list[str] = []
    name = f"{node['type']} ({node['id']})"
    if [slot["name"] for slot in node["inputs"]] != list(inputs):
        found.append(f"{name}: expected the inputs {list(inputs)}, got {[slot['name'] for slot in node['inputs']]}")
        return found
    if [slot["type"] for slot in node["outputs"]] != outputs:
        found.append(f"{name}: expected the outputs {outputs}")
    widgets = [kind for kind in inputs.values() if kind in WIDGETS]
    values = node["widgets_values"]
    if len(values) != len(widgets):
        found.append(f"{name}: expected {len(widgets)} values, got {len(values)}")
    for kind, value in zip(widgets, values, strict=False):
        if not isinstance(value, WIDGETS[kind]):
            found.append(f"{name}: expected {kind}, got {value!r}")
    for slot in node["inputs"]:
        if inputs[slot["name"]] not in WIDGETS and slot["link"] not in links:
            found.append(f"{name}: nothing is connected to {slot['name']}")
    return found


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_there_are_examples_for_every_use() -> None:
    assert NAMES == [
        "decode_at_high_resolution",
        "exact_and_tiled",
        "inpaint_encode",
        "make_any_vae_exact",
        "upscale_encode_decode",
    ]
    used = {node["type"] for name in NAMES for node in load(name)["nodes"]}
    from exact_vae import NODE_CLASS_MAPPINGS

    assert NODE_CLASS_MAPPINGS.keys() - used == {"ExactVAEEncodeTiled"}


@pytest.mark.parametrize("name", NAMES)
def test_nodes_links_and_values_fit_together(name: str) -> None:
    assert problems(load(name)) == []


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_no_file_that_a_new_user_lacks(name: str) -> None:
    for node in load(name)["nodes"]:
        if node["type"] == "LoadImage":
            assert node["widgets_values"][0] == "example.png"
        if node["type"] == "ExactVAELoader":
            assert node["widgets_values"] == ["bundled", "auto", ""]
        if node["type"] == "VAELoader":  # the page offers to get it, from where the core's own templates have it
            (model,) = node["properties"]["models"]
            assert node["widgets_values"] == [model["name"]] == ["ae.safetensors"]
            assert model["directory"] == "vae"
            assert model["url"].startswith("https://huggingface.co/Comfy-Org/")
            assert model["url"].endswith("/ae.safetensors")


def test_make_vae_exact_is_shown_behind_a_loader_of_the_core_s() -> None:
    """What ExactVAE's loader gives is exact without it."""
    workflow = load("make_any_vae_exact")
    nodes = {node["id"]: node for node in workflow["nodes"]}
    sources = {
        link[3]: nodes[link[1]]["type"] for link in workflow["links"] if nodes[link[3]]["type"] == "ExactVAEApply"
    }
    assert list(sources.values()) == ["VAELoader"]


@pytest.mark.parametrize("name", NAMES)
def test_values_are_allowed_by_our_nodes(name: str) -> None:
    from exact_vae import NODE_CLASS_MAPPINGS

    for node in load(name)["nodes"]:
        if node["type"] not in NODE_CLASS_MAPPINGS:
            continue
        groups = NODE_CLASS_MAPPINGS[node["type"]].INPUT_TYPES()
        specs = {**groups.get("required", {}), **groups.get("optional", {})}
        widgets = [spec for spec in specs.values() if isinstance(spec[0], list) or spec[0] in WIDGETS]
        for spec, value in zip(widgets, node["widgets_values"], strict=True):
            if isinstance(spec[0], list):
                assert value in spec[0]
            elif spec[0] == "STRING":
                assert isinstance(value, str)
            else:
                assert spec[1]["min"] <= value <= spec[1]["max"]


@pytest.mark.parametrize("name", NAMES)
def test_it_can_be_read_at_a_glance(name: str) -> None:
    workflow = load(name)
    notes = [node for node in workflow["nodes"] if node["type"] in NOTES]
    assert len(notes) == 1
    assert 80 < len(notes[0]["widgets_values"][0]) < 500
    boxes = {group["title"]: group["bounding"] for group in workflow["groups"]}
    assert len(boxes) == len(workflow["groups"]) >= 2
    for node in workflow["nodes"]:
        (x, y), (width, height) = node["pos"], node["size"]
        inside = [
            title
            for title, (left, top, w, h) in boxes.items()
            if left <= x and top <= y - 30 and x + width <= left + w and y + height <= top + h
        ]
        assert len(inside) == 1, f"{node['type']} stands in {len(inside)} groups"
    for one in workflow["nodes"]:
        for other in workflow["nodes"]:
            assert one is other or not overlap(one, other), f"{one['type']} covers {other['type']}"


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_picture_for_the_template_browser(name: str) -> None:
    """The host offers `<name>.jpg` beside `<name>.json`; other formats are not looked for."""
    path = FOLDER / f"{name}.jpg"
    assert path.stat().st_size < 150_000
    with Image.open(path) as picture:
        assert picture.format == "JPEG"
        assert 800 <= picture.width <= 1600
        assert 0.4 < picture.height / picture.width < 1.2
        assert numpy.asarray(picture.convert("L")).std() > 10, "nothing is in it"


def test_there_is_no_picture_of_nothing() -> None:
    assert sorted(path.stem for path in FOLDER.iterdir() if path.suffix != ".json") == NAMES


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two nodes, with their title bars, share a spot."""
    return all(
        one["pos"][i] - (30 if i else 0) < other["pos"][i] + other["size"][i]
        and other["pos"][i] - (30 if i else 0) < one["pos"][i] + one["size"][i]
        for i in (0, 1)
    )


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w["links"].pop(), "nothing is connected|not known"),
        (lambda w: w["nodes"][0].update(type="KSampler"), "KSampler is neither"),
        (lambda w: w["nodes"][0]["widgets_values"].append(1), "expected 2 values"),
        (lambda w: w["links"][0].__setitem__(3, 99), "not there"),
        (lambda w: w["nodes"][1]["inputs"].reverse(), "expected the inputs"),
    ],
)
def test_a_damaged_workflow_is_found_out(damage: Any, message: str) -> None:
    workflow = copy.deepcopy(load("decode_at_high_resolution"))
    damage(workflow)
    assert re.search(message, "\n".join(problems(workflow)))
