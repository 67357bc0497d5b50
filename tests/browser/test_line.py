"""The line on nodes of the core, of runs that failed and of runs that were cancelled."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from exact_vae.tests.browser.ui import LINE, PANEL, TRACK

if TYPE_CHECKING:
    from .ui import Ui

pytestmark = pytest.mark.browser


def panels(ui: Ui, node: int) -> int:
    """How many panels of ours a node has."""
    return ui.js(
        "(id) => window.app.graph.getNodeById(id).widgets?.filter(({type}) => type === 'exact_vae_panel').length ?? 0",
        node,
    )


def state(ui: Ui) -> str:
    return ui.js(f"() => document.querySelector('{PANEL}').dataset.state")


def test_the_core_s_node_behind_make_vae_exact_has_the_line(any_ui: Ui, screenshot: Callable[[Ui, str], None]) -> None:
    ui = any_ui
    decode = ui.core_workflow(512)
    ui.run()
    ui.visible(LINE)
    screenshot(ui, "core")
    assert panels(ui, decode) == 1
    assert ui.page.locator(PANEL).count() == 1
    assert ui.text(LINE).startswith("exact · ")
    assert " s" in ui.text(LINE)
    assert not ui.page.locator(TRACK).first.is_visible()
    assert "exact_vae" not in json.dumps(ui.js("() => window.app.graphToPrompt()"))
    assert ui.console.unexplained() == []


@pytest.mark.parametrize("frames", [5, 17])
def test_the_line_of_a_clip_tells_its_frames(ui: Ui, frames: int, screenshot: Callable[[Ui, str], None]) -> None:
    decode = ui.clip_workflow(frames)
    ui.run()
    ui.visible(LINE)
    screenshot(ui, f"clip_{frames}")
    assert panels(ui, decode) == 1
    assert re.fullmatch(rf"exact · .* · {frames} frames, [\d.]+ frames/s · [\d.]+ s", ui.text(LINE))
    assert state(ui) == "exact"
    assert ui.console.unexplained() == []


def test_undo_keeps_the_line_of_the_core_s_node(any_ui: Ui) -> None:
    ui = any_ui
    decode = ui.core_workflow()
    # As a workflow that was opened from a file: with an id, which a cleared one has not.
    ui.js("() => window.app.loadGraphData({...window.app.graph.serialize(), id: crypto.randomUUID()}, false)")
    ui.page.wait_for_function("() => window.app.graph.nodes.length === 5")
    ui.run()
    ui.visible(LINE)
    line = ui.text(LINE)
    ui.js("() => window.app.loadGraphData(window.app.graph.serialize(), false)")
    ui.page.wait_for_function(f"(line) => document.querySelector('{LINE}')?.innerText === line", arg=line)
    assert panels(ui, decode) == 1


def test_a_failed_run_shows_why_and_no_line_of_the_run_before(
    any_ui: Ui, screenshot: Callable[[Ui, str], None]
) -> None:
    ui = any_ui
    decode = ui.decode_workflow(640)
    ui.run()
    assert state(ui) == "exact"
    memory = "window.app.graph.getNodeById(id).widgets.find(({name}) => name === 'memory').value"
    ui.js(f"(id) => {{ {memory} = 0.01; }}", decode)
    ui.queue()
    ui.wait("execution_error")
    ui.page.get_by_text("failed · ").first.wait_for()
    screenshot(ui, "failed")
    assert state(ui) == "failed"
    assert "expected a budget of at least" in ui.text(LINE)
    assert not ui.page.locator(TRACK).first.is_visible()
    good = f"() => document.querySelector('{PANEL}')?.dataset.state === 'exact'"
    ui.js(f"(id) => {{ {memory} = 0.5; }}", decode)
    ui.run()
    ui.page.wait_for_function(good)
    told = "async () => (await (await fetch('/object_info/ExactVAEDecode')).json()).ExactVAEDecode"
    if "has_intermediate_output" in ui.js(told):  # hosts that send the line again with a result from their cache
        ui.js(f"(id) => {{ {memory} = 0.01; }}", decode)
        ui.queue()
        ui.wait("execution_error")
        ui.js(f"(id) => {{ {memory} = 0.5; }}", decode)
        ui.run()
        ui.page.wait_for_function(good)


def test_a_cancelled_run_says_so_until_the_next(any_ui: Ui, screenshot: Callable[[Ui, str], None]) -> None:
    ui = any_ui
    ui.decode_workflow(1536)
    ui.queue()
    ui.page.wait_for_function("() => window.seen.progress.some(({fraction}) => fraction > 0.1)", timeout=60_000)
    ui.js("() => window.comfyAPI.api.api.interrupt(null)")
    ui.wait("execution_interrupted")
    ui.page.get_by_text("cancelled at ").first.wait_for()
    screenshot(ui, "cancelled")
    assert state(ui) == "other"
    ui.send("execution_start", {"prompt_id": "next"})
    ui.gone()
