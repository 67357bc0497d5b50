"""The frontend as the tests use it, and what it wrote to its console."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page

RUN_MS = 180_000
CLIPS = "clips.safetensors"
"""A VAE of clips, random."""
PANEL, LINE, TRACK = ".exact-vae", ".exact-vae-line", ".exact-vae-track"
"""Of a panel of ours: the whole, its line, the bar of its memory or progress."""
# Console errors that may come while a test works, each with its reason; any other fails the test. What the frontend
# writes before that, while it opens, counts only if it names a file of ours.
IGNORED = {
    r"net::ERR_FAILED": "addresses outside this machine are blocked here",
    r"Failed to load resource.*status of 404": "files that the host looks for and may lack, such as user.css",
    r"[Jj]obs ?A[Pp][Ii]": "a frontend newer than its host asks for a list of jobs that the host does not have",
}


OVER_THE_CANVAS = ("Comfy.Minimap.Visible", "Comfy.Graph.CanvasMenu", "Comfy.Graph.CanvasInfo")
"""Settings of what the page draws over the workflow."""
MENU = ".comfy-menu-hamburger, .no-drag.fixed.top-0.right-0"
"""What is left of the page while it shows nothing else."""


class Console:
    """What a page wrote as errors."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.opened = 0  # Errors up to the moment when the page was ready.

    def watch(self, page: Page) -> None:
        page.on("console", self._message)
        page.on("pageerror", lambda error: self.errors.append(f"uncaught: {error.message}\n{error.stack}"))

    def _message(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" or "ExactVAE" in message.text:
            self.errors.append(text)

    def ours(self) -> list[str]:
        """Errors that name a file or an event of ours."""
        return [text for text in self.errors if re.search(r"exact.?vae", text, re.IGNORECASE)]

    def unexplained(self) -> list[str]:
        return [text for text in self.errors[self.opened :] if not any(re.search(pattern, text) for pattern in IGNORED)]


class Ui:
    """The frontend as these tests use it."""

    sizes = itertools.count(1)  # Each workflow has a size of its own: the server answers a known one from its cache.

    def __init__(self, page: Page, console: Console) -> None:
        self.page, self.console = page, console

    def js(self, expression: str, argument: Any = None) -> Any:
        return self.page.evaluate(expression, argument)

    def set(self, setting: str, value: Any) -> None:
        self.js("([id, value]) => window.app.extensionManager.setting.set(id, value)", [setting, value])

    def visible(self, selector: str) -> None:
        """Wait for the first of these to be seen."""
        self.page.locator(selector).first.wait_for(state="visible")

    def gone(self) -> None:
        """Wait until no panel of ours is left."""
        self.page.wait_for_function(f"() => !document.querySelector('{PANEL}')")

    def text(self, selector: str) -> str:
        """What the first of these says."""
        return self.page.locator(selector).first.inner_text()

    def clear(self) -> None:
        self.js("""() => {
            window.app.graph.clear();
            Object.assign(window.app.canvas.ds, {scale: 1, offset: [60, 20]});
        }""")
        self.page.wait_for_function("() => window.app.graph.nodes.length === 0")

    def add(self, kind: str, x: int, y: int, values: dict[str, Any] | None = None) -> int:
        """A node with values in its widgets; its number."""
        return self.js(
            """([kind, x, y, values]) => {
                const node = window.LiteGraph.createNode(kind);
                window.app.graph.add(node);
                node.pos = [x, y];
                for (const [name, value] of Object.entries(values)) {
                    const widget = node.widgets.find((widget) => widget.name === name);
                    if (!widget) throw new Error(`${kind} has no ${name}`);
                    widget.value = value;
                }
                return node.id;
            }""",
            [kind, x, y, values or {}],
        )

    def link(self, source: int, target: int, name: str) -> None:
        """The first output of a node to an input of another."""
        self.js(
            """([source, target, name]) => {
                const [from, to] = [source, target].map((id) => window.app.graph.getNodeById(id));
                from.connect(0, to, to.inputs.findIndex((input) => input.name === name));
            }""",
            [source, target, name],
        )

    def decode_workflow(self, size: int = 512) -> int:
        """bundled VAE, an empty latent of 16 channels, our decode, a preview; the number of the decode node."""
        self.clear()
        width = size + 16 * next(Ui.sizes)
        vae = self.add("ExactVAELoader", 40, 120, {"vae_name": "bundled"})
        latent = self.add("EmptySD3LatentImage", 40, 300, {"width": width, "height": size})
        decode = self.add("ExactVAEDecode", 350, 120)
        preview = self.add("PreviewImage", 660, 120)
        self.link(vae, decode, "vae")
        self.link(latent, decode, "samples")
        self.link(decode, preview, "images")
        return decode

    def core_workflow(self, size: int = 64) -> int:
        """bundled VAE, Make VAE Exact, an empty latent, the core's own decode; the number of that."""
        self.clear()
        vae = self.add("ExactVAELoader", 40, 120, {"vae_name": "bundled"})
        exact = self.add("ExactVAEApply", 40, 320)
        latent = self.add("EmptySD3LatentImage", 40, 480, {"width": size + 16 * next(Ui.sizes), "height": size})
        decode, preview = self.add("VAEDecode", 350, 120), self.add("PreviewImage", 660, 120)
        self.link(vae, exact, "vae")
        self.link(exact, decode, "vae")
        self.link(latent, decode, "samples")
        self.link(decode, preview, "images")
        return decode

    def clip_workflow(self, frames: int) -> int:
        """A narrow VAE of clips, an empty clip, our decode; the number of that."""
        self.clear()
        vae = self.add("ExactVAELoader", 40, 120, {"vae_name": CLIPS})
        size = {"width": 64 + 16 * next(Ui.sizes), "height": 64, "length": frames}
        latent = self.add("EmptyHunyuanLatentVideo", 40, 320, size)
        decode, preview = self.add("ExactVAEDecode", 350, 120), self.add("PreviewImage", 660, 120)
        self.link(vae, decode, "vae")
        self.link(latent, decode, "samples")
        self.link(decode, preview, "images")
        return decode

    def show_only(self, left: int, top: int, width: int, height: int) -> None:
        """A part of the canvas in its own size, with nothing of the page over it, until the page is closed."""
        self.page.set_viewport_size({"width": width, "height": height})
        for setting in OVER_THE_CANVAS:
            self.js("(id) => window.app.ui.settings.setSettingValue(id, false)", setting)
        if not self.js("() => Boolean(window.app.extensionManager.focusMode)"):
            self.js("() => window.app.extensionManager.command.execute('Workspace.ToggleFocusMode')")
        self.page.add_style_tag(content=f"{MENU} {{ visibility: hidden; }}")
        self.page.wait_for_timeout(1500)
        self.js("([x, y]) => { Object.assign(window.app.canvas.ds, {scale: 1, offset: [-x, -y]}); }", [left, top])
        self.js("() => window.app.canvas.setDirty(true, true)")
        self.page.wait_for_timeout(1500)

    def run(self, milliseconds: int = RUN_MS) -> list[dict[str, Any]]:
        """Queue the workflow and wait for its end; the progress events of our pack in their order."""
        self.queue()
        return self.wait("execution_success", milliseconds)

    def queue(self) -> None:
        """Queue the workflow and listen to what comes of it."""
        self.js("""() => {
            const api = window.comfyAPI.api.api;
            window.seen = {progress: [], end: null};
            const note = (event) => window.seen.progress.push(event.detail);
            const end = (event) => { window.seen.end = event; };
            api.addEventListener("exact_vae.progress", note);
            for (const name of ["execution_success", "execution_error", "execution_interrupted"]) {
                api.addEventListener(name, ({detail}) => end({name, ...detail}), {once: true});
            }
            return window.app.queuePrompt(0);
        }""")

    def wait(self, end: str, milliseconds: int = RUN_MS) -> list[dict[str, Any]]:
        """Wait for the end of what was queued, which is of this kind."""
        self.page.wait_for_function("() => window.seen.end !== null", timeout=milliseconds)
        seen = self.js("() => window.seen")
        assert seen["end"]["name"] == end, seen["end"]
        return seen["progress"]

    def send(self, event: str, detail: Any) -> None:
        """An event as if the server had sent it."""
        self.js("([n, detail]) => window.comfyAPI.api.api.dispatchEvent(new CustomEvent(n, {detail}))", [event, detail])
