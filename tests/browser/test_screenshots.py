"""The pictures of docs/screenshots: what they show is there; written where EXACT_VAE_SCREENSHOTS names a folder."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from exact_vae.tests.browser.ui import LINE, TRACK
from PIL import Image

if TYPE_CHECKING:
    from .ui import Ui

pytestmark = pytest.mark.browser

MARGIN, LARGEST_BYTES = 12, 285_000
WIDGET = "memory (GiB, 0: automatic)"


@pytest.fixture(autouse=True)
def _no_badges(ui: Ui) -> None:  # pyright: ignore[reportUnusedFunction]
    """The name of the folder on every node of ours tells nothing here."""
    ui.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None")


def write(ui: Ui, name: str, width: int, height: int) -> None:
    """The canvas from its corner on, as small as it is without loss."""
    ui.show_only(0, 0, width, height)
    shown = Image.open(io.BytesIO(ui.page.screenshot())).convert("RGB")
    assert shown.size == (width, height)
    file = io.BytesIO()
    shown.save(file, "PNG", optimize=True)
    assert len(file.getvalue()) <= LARGEST_BYTES
    if folder := os.environ.get("EXACT_VAE_SCREENSHOTS"):
        (Path(folder) / f"{name}.png").write_bytes(file.getvalue())


def nodes_2(ui: Ui) -> None:
    """The newer kind of nodes; skipped where this frontend has none."""
    ui.set("Comfy.VueNodes.Enabled", True)
    if not ui.js("() => Boolean(window.LiteGraph.vueNodesMode)"):
        pytest.skip("this frontend has no Nodes 2.0")


def label(ui: Ui, node: int) -> str:
    """What the widget of the memory is called."""
    widget = "window.app.graph.getNodeById(id).widgets.find(({name}) => name === 'memory')"
    return ui.js(f"(id) => {{ const widget = {widget}; return widget.label ?? widget.name; }}", node)


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_encode_and_decode(ui: Ui, palette: str) -> None:
    ui.set("Comfy.ColorPalette", palette)
    if palette == "dark":
        nodes_2(ui)
    image = ui.add("LoadImage", MARGIN, 36, {"image": "example.png"})
    vae = ui.add("ExactVAELoader", MARGIN, 416, {"vae_name": "bundled", "dtype": "float32"})
    encode = ui.add("ExactVAEEncode", 322, 36, {"memory": 0.15})
    decode = ui.add("ExactVAEDecode", 322, 276, {"memory": 0.15})
    preview = ui.add("PreviewImage", 692, 36)
    links = [(image, encode, "pixels"), (vae, encode, "vae"), (vae, decode, "vae"), (encode, decode, "samples")]
    for source, target, name in [*links, (decode, preview, "images")]:
        ui.link(source, target, name)
    sizes = {image: (270, 330), encode: (310, 150), decode: (310, 150), preview: (260, 330)}
    for node, size in sizes.items():
        ui.js("([id, size]) => window.app.graph.getNodeById(id).setSize(size)", [node, size])
    ui.run()  # what is compiled and loaded at the first run is in that one's seconds
    for node in (encode, decode):
        ui.js("(id) => { const {widgets} = window.app.graph.getNodeById(id); widgets[0].value = 0.16; }", node)
    ui.run()
    ui.visible(TRACK)
    assert [line.split(" · ")[0] for line in ui.page.locator(LINE).all_inner_texts()] == ["exact", "exact"]
    assert label(ui, encode) == label(ui, decode) == WIDGET
    write(ui, f"nodes_{palette}", 964, 560 if palette == "dark" else 530)


def test_plan(ui: Ui) -> None:
    nodes_2(ui)
    vae = ui.add("ExactVAELoader", MARGIN, 36, {"vae_name": "bundled"})
    plan = ui.add("ExactVAEPlan", 322, 36, {"width": 4096, "height": 4096, "memory": 2.0})
    ui.js("(id) => window.app.graph.getNodeById(id).setSize([690, 320])", plan)
    ui.link(vae, plan, "vae")
    ui.run()
    ui.visible(".exact-vae-text")
    assert "peak " in ui.text(".exact-vae-text")
    assert label(ui, plan) == WIDGET
    write(ui, "plan", 1024, 400)


def test_progress(ui: Ui) -> None:
    nodes_2(ui)
    decode = ui.decode_workflow(1536)
    ui.js(
        """([left, right]) => {
        const preview = window.app.graph.nodes.find(({type}) => type === 'PreviewImage');
        preview.pos = [right, preview.pos[1]];
        preview.setSize([160, 60]);
        window.app.graph.getNodeById(left).setSize([310, 150]);
    }""",
        [decode, 700],
    )
    ui.show_only(20, 60, 860, 330)
    ui.queue()
    ui.page.wait_for_function("() => window.seen.progress.some(({fraction}) => fraction > 0.4)", timeout=120_000)
    assert " · " in ui.text(LINE)
    assert label(ui, decode) == WIDGET
    if folder := os.environ.get("EXACT_VAE_SCREENSHOTS"):
        ui.page.screenshot(path=str(Path(folder) / "progress.png"))
    ui.js("() => window.comfyAPI.api.api.interrupt(null)")
    ui.wait("execution_interrupted")
