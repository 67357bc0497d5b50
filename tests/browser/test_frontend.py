"""What users see: nodes that can be found, a line and a bar after a run, nothing in saved workflows, no errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from exact_vae.nodes import NODE_DISPLAY_NAME_MAPPINGS
from exact_vae.tests.browser.ui import LINE, PANEL, TRACK

if TYPE_CHECKING:
    from .ui import Ui

pytestmark = pytest.mark.browser

LEGEND = ".exact-vae-legend"
GIB = 2**30
REPORT: dict[str, Any] = {
    "line": "exact · recompute · 3.10 GiB · 12.4 s",
    "exact": True,
    "reason": None,
    "what": "decode",
    "budget_bytes": 8 * GIB,
    "plan_bytes": 4 * GIB,
    "peak_bytes": 3 * GIB,
    "warnings": [],
}
PLAN = (
    "level  plane               schedule\n0      2048 x 2048 x 128   recompute\npeak 1.00 GiB of a budget of 8.00 GiB"
)


def executed(node: int, report: dict[str, Any]) -> dict[str, Any]:
    return {"node": str(node), "display_node": str(node), "prompt_id": "p", "output": {"exact_vae": [report]}}


@pytest.mark.parametrize(("node_id", "name"), sorted(NODE_DISPLAY_NAME_MAPPINGS.items()))
def test_every_node_can_be_searched_and_added(ui: Ui, node_id: str, name: str) -> None:
    for _ in range(5):  # The canvas takes clicks a little after it is drawn.
        ui.page.mouse.dblclick(700, 600)
        ui.page.wait_for_timeout(500)
        if ui.js("() => document.activeElement?.tagName") == "INPUT":
            break
    ui.page.keyboard.type(name)
    ui.page.get_by_role("option").filter(has_text=name).first.wait_for()
    ui.page.keyboard.press("Enter")
    ui.page.wait_for_function("() => window.app.graph.nodes.length === 1")
    assert ui.js("() => window.app.graph.nodes[0].comfyClass") == node_id


def test_a_run_is_shown_from_beginning_to_end(any_ui: Ui, screenshot: Callable[[Ui, str], None]) -> None:
    ui = any_ui
    decode = ui.decode_workflow()
    before = ui.js("() => window.app.graph.serialize().nodes.map((node) => node.widgets_values?.length ?? 0)")
    assert ui.page.locator(PANEL).count() == 0
    events = [event for event in ui.run() if event["node"] == str(decode)]
    ui.visible(LINE)
    screenshot(ui, "decode")

    assert ui.text(LINE).startswith("exact · ")
    assert " s" in ui.text(LINE)
    assert "plan " in ui.text(LEGEND)
    assert "budget " in ui.text(LEGEND)
    assert "peak 0 B" not in ui.text(LEGEND)
    assert events, "no progress arrived"
    fractions = [event["fraction"] for event in events]
    assert fractions == sorted(fractions)
    assert 0 <= fractions[0] <= fractions[-1] <= 1
    assert [event["done"] for event in events] == [False] * (len(events) - 1) + [True]
    after = ui.js("() => window.app.graph.serialize().nodes.map((node) => node.widgets_values?.length ?? 0)")
    assert after == before
    prompt = ui.js("() => window.app.graphToPrompt()")
    assert "exact_vae" not in json.dumps(prompt)
    assert ui.console.unexplained() == []


def test_memory_is_drawn_to_scale(any_ui: Ui) -> None:
    ui = any_ui
    decode = ui.decode_workflow()
    ui.send("executed", executed(decode, REPORT))
    ui.visible(TRACK)
    widths = ui.js(
        f"""() => Object.fromEntries([...document.querySelector('{TRACK}').children].map((bar) =>
            [bar.className, bar.style.width || bar.style.left]))"""
    )
    assert widths == {"exact-vae-plan": "50%", "exact-vae-peak": "37.5%", "exact-vae-budget": "100%"}
    track = ui.page.locator(TRACK).first
    assert track.get_attribute("role") == "img"
    assert track.get_attribute("aria-label") == "Memory: peak 3.0 GiB, plan 4.0 GiB, budget 8.0 GiB"


def test_what_is_not_known_is_not_shown(any_ui: Ui) -> None:
    ui = any_ui
    decode = ui.decode_workflow()
    ui.send("executed", executed(decode, REPORT | {"peak_bytes": None}))
    ui.visible(TRACK)
    assert ui.text(LEGEND).split("\n") == ["plan 4.0 GiB", "budget 8.0 GiB"]
    other = {"exact": False, "line": "host's own method · video VAE (3-D latents)", "warnings": ["Latent has NaN."]}
    ui.send(
        "executed", executed(decode, REPORT | other | {"plan_bytes": None, "peak_bytes": None, "budget_bytes": None})
    )
    ui.page.get_by_text("host's own method").first.wait_for()
    assert not ui.page.locator(TRACK).first.is_visible()
    assert not ui.page.locator(LEGEND).first.is_visible()
    assert ui.text(".exact-vae-warning") == "Latent has NaN."


def test_progress_is_shown_and_can_be_read_aloud(any_ui: Ui, screenshot: Callable[[Ui, str], None]) -> None:
    ui = any_ui
    decode = ui.decode_workflow()
    event = {"node": str(decode), "fraction": 0.42, "line": "exact · recompute · 42%", "done": False}
    ui.send("exact_vae.progress", event | {"budget_bytes": 8 * GIB, "plan_bytes": 4 * GIB})
    ui.visible(TRACK)
    screenshot(ui, "progress")
    bar = ui.page.get_by_role("progressbar").first
    assert bar.get_attribute("aria-valuenow") == "42"
    assert ui.text(LINE) == "exact · recompute · 42%"
    ui.send("exact_vae.progress", event | {"done": True})
    ui.page.get_by_text("stopped at 42%").first.wait_for()
    assert not ui.page.locator(TRACK).first.is_visible()


def test_the_setting_switches_it_off_and_on_again(any_ui: Ui) -> None:
    ui = any_ui
    decode = ui.decode_workflow()
    size = "(id) => [...window.app.graph.getNodeById(id).size]"
    before = ui.js(size, decode)
    ui.send("executed", executed(decode, REPORT))
    ui.visible(LINE)
    ui.set("ExactVAE.ShowOnNodes", False)
    ui.gone()
    if not ui.js("() => Boolean(window.LiteGraph.vueNodesMode)"):
        assert ui.js(size, decode) == before
    ui.send("exact_vae.progress", {"node": str(decode), "fraction": 0.5, "line": "half", "done": False})
    ui.send("executed", executed(decode, REPORT | {"line": "exact · while it was off"}))
    ui.page.wait_for_timeout(300)
    assert ui.page.locator(PANEL).count() == 0
    ui.set("ExactVAE.ShowOnNodes", True)
    ui.visible(LINE)
    assert ui.text(LINE) == "exact · while it was off"


def test_the_setting_is_in_the_dialog(ui: Ui) -> None:
    ui.js("() => window.app.extensionManager.command.execute('Comfy.ShowSettingsDialog')")
    ui.page.locator("[role=dialog]").get_by_text("ExactVAE", exact=True).first.click()
    ui.page.get_by_text("Show progress, memory and time on the nodes").first.wait_for()


def test_undo_keeps_the_line_and_a_reload_does_not(ui: Ui, open_page: Callable[[], Ui]) -> None:
    ui.decode_workflow(64)
    ui.run()
    ui.visible(LINE)
    line = ui.text(LINE)
    ui.js("() => window.app.loadGraphData(window.app.graph.serialize(), false)")
    ui.page.wait_for_function(f"(line) => document.querySelector('{LINE}')?.innerText === line", arg=line)
    assert ui.page.locator(PANEL).count() == 1
    again = open_page()
    assert again.page.locator(PANEL).count() == 0
    assert ui.console.ours() == []


def test_the_plan_is_shown_as_text(any_ui: Ui, screenshot: Callable[[Ui, str], None]) -> None:
    ui = any_ui
    ui.clear()
    vae = ui.add("ExactVAELoader", 40, 160, {"vae_name": "bundled"})
    values = {"width": 4096 + 8 * next(ui.sizes), "height": 4096, "memory": 2.0}
    plan = ui.add("ExactVAEPlan", 360, 160, values)
    ui.link(vae, plan, "vae")
    ui.run()
    ui.visible(".exact-vae-text")
    screenshot(ui, "plan")
    assert "peak " in ui.text(".exact-vae-text")
    ui.send("executed", {"node": str(plan), "display_node": str(plan), "output": {"text": [PLAN]}})
    ui.page.wait_for_timeout(200)
    assert ui.page.locator(".exact-vae-text").all_inner_texts() == [PLAN]


def test_little_memory_stays_what_was_typed(ui: Ui) -> None:
    """The page rounds numbers to the input's step; rounded to 0 it would be automatic."""
    node = ui.add("ExactVAEDecode", 300, 200)
    kept = ui.js(
        """(id) => {
            const widget = window.app.graph.getNodeById(id).widgets.find((widget) => widget.name === "memory");
            return [0.04, 0.12, 2.5].map((typed) => {
                widget.callback(typed);
                return [widget.value, widget.value.toFixed(widget.options.precision)];
            });
        }""",
        node,
    )
    assert kept == [[0.04, "0.04"], [0.12, "0.12"], [2.5, "2.50"]]


def test_nodes_of_others_show_nothing_of_their_own_output(ui: Ui) -> None:
    ui.clear()
    foreign = ui.add("PreviewImage", 300, 200)
    ui.send("executed", executed(foreign, REPORT))
    ui.page.wait_for_timeout(300)
    assert ui.page.locator(PANEL).count() == 0
    assert ui.console.ours() == []


@pytest.mark.parametrize("detail", [None, {}, {"node": None}, {"node": "9:9:9"}, {"node": "1", "output": None}])
def test_strange_events_do_no_harm(ui: Ui, detail: Any) -> None:
    ui.decode_workflow()
    ui.send("exact_vae.progress", detail)
    ui.send("exact_vae.progress", {"node": "3", "fraction": "x", "line": 7})
    ui.page.wait_for_timeout(200)
    assert ui.console.ours() == []


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_text_is_readable_in_dark_and_light(any_ui: Ui, palette: str, screenshot: Callable[[Ui, str], None]) -> None:
    """Contrast of at least 4.5 for text and 3 for the bars, as the accessibility guidelines have it."""
    ui = any_ui
    ui.set("Comfy.ColorPalette", palette)
    decode = ui.decode_workflow()
    ui.send("executed", executed(decode, REPORT | {"warnings": ["NaN came in with the latent."]}))
    ui.visible(LINE)
    screenshot(ui, f"report_{palette}")
    ratios = ui.js("""() => {
        const draw = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
        const luminance = (color) => {
            draw.fillStyle = color;
            draw.fillRect(0, 0, 1, 1);
            const [r, g, b] = [...draw.getImageData(0, 0, 1, 1).data].slice(0, 3).map((v) =>
                v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const style = (name) => getComputedStyle(document.querySelector(name));
        const ground = luminance(style(".exact-vae").backgroundColor);
        const ratio = (color) => {
            const other = luminance(color);
            return (Math.max(ground, other) + 0.05) / (Math.min(ground, other) + 0.05);
        };
        return {
            line: ratio(style(".exact-vae-line").color),
            legend: ratio(style(".exact-vae-legend").color),
            warning: ratio(style(".exact-vae-warning").color),
            peak: ratio(style(".exact-vae-peak").backgroundColor),
            dot: ratio(style(".exact-vae-dot").backgroundColor),
        };
    }""")
    assert all(ratios[name] >= 4.5 for name in ("line", "legend", "warning")), ratios
    assert all(ratios[name] >= 3 for name in ("peak", "dot")), ratios
