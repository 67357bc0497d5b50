"""Each example as a new user meets it: found in the template browser by its picture, opened, run, legible."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from exact_vae.tests.browser.conftest import PACK
from PIL import Image

if TYPE_CHECKING:
    from .ui import Ui

pytestmark = pytest.mark.browser

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
EXAMPLES = sorted(path.stem for path in FOLDER.glob("*.json"))
RUN_MS = 600_000
MARGIN, LARGEST_BYTES, WIDEST = 24, 145_000, 1280

NODES = """() => window.app.graph.nodes.map((node) => ({
    name: `${node.type} (${node.id})`, x: node.pos[0], y: node.pos[1] - 30, right: node.pos[0] + node.size[0],
    bottom: node.pos[1] + node.size[1]}))"""
NODES_2 = """() => window.app.graph.nodes.map((node) => {
    const box = document.querySelector(`[data-node-id="${node.id}"]`).getBoundingClientRect();
    const {scale, offset} = window.app.canvas.ds;
    const at = window.app.canvas.canvas.getBoundingClientRect();
    const [x, right] = [box.left, box.right].map((side) => (side - at.left) / scale - offset[0]);
    const [y, bottom] = [box.top, box.bottom].map((side) => (side - at.top) / scale - offset[1]);
    return {name: `${node.type} (${node.id})`, x, y, right, bottom};
})"""
GROUPS = """() => window.app.graph.groups.map(({title, pos, size}) => ({
    name: title, x: pos[0], y: pos[1], right: pos[0] + size[0], bottom: pos[1] + size[1]}))"""


def open_template(ui: Ui, name: str) -> None:
    """By the template browser, where its picture has taken the place of the frontend's own."""
    ui.js("() => window.app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    title = ui.page.locator("[role=dialog]").get_by_text(re.compile(f"^{name.replace('_', '[_ ]')}$")).first
    for _ in range(10):  # an older frontend goes back to its first page when its list has come
        ui.page.locator("[role=dialog]").get_by_text(PACK, exact=True).first.dispatch_event("click")
        ui.page.wait_for_timeout(3000)
        if title.count():
            break
    title.scroll_into_view_if_needed()  # older frontends load a picture only once it is in sight
    ui.page.wait_for_function(
        """([name, width]) => [...document.querySelectorAll("[role=dialog] img")].some((image) =>
            image.alt === name && image.naturalWidth === width)""",
        arg=[name, width_of(FOLDER / f"{name}.jpg")],
    )
    title.dispatch_event("click")
    ui.page.wait_for_function("() => window.app.graph.nodes.length > 5")
    ui.page.locator("[role=dialog]").first.wait_for(state="hidden")


def width_of(path: Path) -> int:
    """In pixels."""
    with Image.open(path) as picture:
        return picture.width


def covered(nodes: list[dict[str, Any]]) -> list[str]:
    """Pairs of nodes of which one lies on the other."""
    return [
        f"{one['name']} and {other['name']}"
        for number, one in enumerate(nodes)
        for other in nodes[number + 1 :]
        if one["x"] < other["right"] and other["x"] < one["right"]
        if one["y"] < other["bottom"] and other["y"] < one["bottom"]
    ]


def strays(nodes: list[dict[str, Any]], groups: list[dict[str, Any]]) -> list[str]:
    """Nodes that stick out of their groups."""
    return [
        f"{node['name']}: {node['x']:.0f}..{node['right']:.0f}, {node['y']:.0f}..{node['bottom']:.0f}"
        for node in nodes
        if not any(
            group["x"] <= node["x"]
            and group["y"] <= node["y"]
            and node["right"] <= group["right"]
            and node["bottom"] <= group["bottom"]
            for group in groups
        )
    ]


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_opens_from_the_template_browser_and_runs(
    ui: Ui, name: str, picture: Callable[[Ui, str], None]
) -> None:
    open_template(ui, name)
    assert ui.js("() => window.app.graph.nodes.filter((node) => node.has_errors).length") == 0
    ui.run(RUN_MS)
    ui.page.locator(".exact-vae-line").first.wait_for(state="attached")
    ui.page.wait_for_timeout(1000)  # nodes grow once their lines and pictures are drawn
    picture(ui, name)
    if name == "make_any_vae_exact":  # the core's own nodes tell how they ran
        lines = ui.page.locator(".exact-vae-line").all_inner_texts()
        assert [line.split(" · ")[0] for line in lines] == ["exact"] * 3
    assert covered(ui.js(NODES)) == []
    assert strays(ui.js(NODES), ui.js(GROUPS)) == []
    ui.set("Comfy.VueNodes.Enabled", True)
    ui.page.wait_for_timeout(3000)
    if ui.js("() => window.app.graph.nodes.every(({id}) => document.querySelector(`[data-node-id='${id}']`))"):
        picture(ui, f"{name}_nodes2")
        show_all(ui)
        assert covered(ui.js(NODES_2)) == []
        assert strays(ui.js(NODES_2), ui.js(GROUPS)) == []
    assert ui.console.unexplained() == []


@pytest.fixture
def picture() -> Callable[[Ui, str], None]:
    """Writes a picture of the whole workflow where EXACT_VAE_SCREENSHOTS names a folder."""

    def write(ui: Ui, name: str) -> None:
        if folder := os.environ.get("EXACT_VAE_SCREENSHOTS"):
            path = Path(folder) / f"{name}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(as_jpeg(photograph(ui)))

    return write


def show_all(ui: Ui) -> None:
    """The whole workflow in view, in its own size, with nothing of the page over it."""
    groups = "window.app.graph.groups.map((group) => [...group.pos, ...group.size])"
    boxes = ui.js(f"() => {groups}")
    left, top = (min(box[axis] for box in boxes) - MARGIN for axis in (0, 1))
    width, height = (max(box[axis] + box[axis + 2] for box in boxes) + MARGIN for axis in (0, 1))
    ui.show_only(int(left), int(top), int(width - left), int(height - top))


def photograph(ui: Ui) -> Image.Image:
    """The workflow alone, as large as a page of its size shows it."""
    show_all(ui)
    return Image.open(io.BytesIO(ui.page.screenshot())).convert("RGB")


def as_jpeg(shown: Image.Image) -> bytes:
    """The picture as a file for the template browser: small enough, as good as that allows."""
    shown = shown.resize((min(WIDEST, shown.width), shown.height * min(WIDEST, shown.width) // shown.width))
    for quality in range(92, 40, -4):
        file = io.BytesIO()
        shown.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= LARGEST_BYTES:
            break
    return file.getvalue()
