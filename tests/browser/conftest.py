"""A real ComfyUI with only this pack, and its real frontend in a headless Chromium.

Needs COMFYUI_DIR (a checkout of ComfyUI), the Python package playwright and a Chromium; skipped with the reason
otherwise. COMFYUI_PYTHON names the Python that runs ComfyUI (else this one), COMFYUI_FRONT_END_ROOT another build of
the frontend, EXACT_VAE_SCREENSHOTS a folder for pictures.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from exact_vae import save
from exact_vae.tests.browser.ui import CLIPS, Console, Ui
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.tests.families.wide_bundled import write_wide_bundled

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
PACK = "ExactVAE"
"""The folder in custom_nodes: not called as the project is."""
START_SECONDS, STEP_MS, RUN_MS = 240, 30_000, 180_000
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]
# No tour for new users, no news, English.
SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Locale": "en", "Comfy.Notification.ShowVersionUpdates": False}
LEFT_OUT = shutil.ignore_patterns(
    ".*", "__pycache__", "tests", "benchmarks", "build", "dist", "demo_output", "*.egg-info"
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def find_chromium() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return next((path for path in map(shutil.which, names) if path), None)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running ComfyUI; stopped at the end, whatever happens."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("the Python package playwright is not installed")
    if find_chromium() is None:
        pytest.skip("no Chromium found on PATH")
    checkout = os.environ.get("COMFYUI_DIR")
    if not checkout or not (Path(checkout) / "main.py").is_file():
        pytest.skip("COMFYUI_DIR does not name a checkout of ComfyUI")
    base = tmp_path_factory.mktemp("comfyui")
    shutil.copytree(ROOT, base / "custom_nodes" / PACK, ignore=LEFT_OUT)
    write_example_image(base / "input" / "example.png")
    write_wide_bundled(base / "models" / "vae" / "ae.safetensors")
    save(random_model(ROWS["Wan 2.1, Qwen-Image"]), base / "models" / "vae" / CLIPS)
    (base / "user" / "default").mkdir(parents=True)
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(SETTINGS), encoding="utf-8")
    port = free_port()
    command = [os.environ.get("COMFYUI_PYTHON", sys.executable), "main.py", "--cpu", "--listen", "127.0.0.1"]
    command += ["--port", str(port), "--base-directory", str(base)]
    if front_end := os.environ.get("COMFYUI_FRONT_END_ROOT"):
        command += ["--front-end-root", front_end]
    log = base / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=checkout, stdout=output, stderr=subprocess.STDOUT)
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_it_answers(process, address, log)
            yield address
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(15)


def write_example_image(path: Path) -> None:
    """Under the name of the host's own example, NASA's portrait of Eileen Collins (public domain)."""
    from PIL import Image
    from skimage import data

    path.parent.mkdir(parents=True)
    Image.fromarray(data.astronaut()).save(path)


def wait_until_it_answers(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/object_info/ExactVAEDecode", timeout=10) as answer:
                assert json.load(answer), f"the pack was not loaded:\n{log.read_text(errors='replace')[-3000:]}"
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    pytest.fail(f"ComfyUI did not start:\n{log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="session")
def browser(server: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS, timeout=60_000)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Browser, server: str) -> Iterator[Callable[[], Ui]]:
    """Opens the frontend, ready for work; what it may not do is ask other machines."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    context.set_default_timeout(STEP_MS)
    context.route(lambda url: not url.startswith((server, "data:", "blob:")), lambda route: route.abort())
    console = Console()

    def open_it() -> Ui:
        page = context.new_page()
        console.watch(page)
        page.goto(server, wait_until="load", timeout=120_000)
        page.wait_for_function(
            "() => window.app?.extensionManager && window.app.graph && window.LiteGraph", timeout=120_000
        )
        page.wait_for_function("() => window.LiteGraph.registered_node_types['ExactVAEDecode']", timeout=120_000)
        # A new user's frontend opens a workflow of its own, moves it into view, and says nowhere when it is done.
        page.wait_for_function("() => window.app.graph.nodes.length > 0", timeout=120_000)
        page.wait_for_timeout(1500)
        console.opened = len(console.errors)
        return Ui(page, console)

    yield open_it
    context.close()


@pytest.fixture
def ui(open_page: Callable[[], Ui]) -> Ui:
    """The frontend with classic nodes and the settings as new users have them."""
    page = open_page()
    page.set("Comfy.VueNodes.Enabled", False)
    page.set("ExactVAE.ShowOnNodes", True)
    page.set("Comfy.ColorPalette", "dark")
    page.clear()
    return page


@pytest.fixture(params=["classic", "nodes2"])
def any_ui(request: pytest.FixtureRequest, ui: Ui) -> Ui:
    """The same, and once more in Nodes 2.0 where this frontend has that and draws elements of plugins there."""
    if request.param == "classic":
        return ui
    ui.set("Comfy.VueNodes.Enabled", True)
    ui.add("ExactVAEDecode", 300, 300)
    ui.js("""() => {
        window.probe = document.createElement("div");
        window.app.graph.nodes[0].addDOMWidget("probe", "probe", window.probe, {serialize: false});
    }""")
    ui.page.wait_for_timeout(1500)
    if not ui.js("() => Boolean(window.probe.closest('[data-node-id]'))"):
        pytest.skip("this frontend has no Nodes 2.0, or draws no elements of plugins there")
    ui.clear()
    return ui


@pytest.fixture
def screenshot(request: pytest.FixtureRequest) -> Callable[[Ui, str], None]:
    """Writes a picture where EXACT_VAE_SCREENSHOTS names a folder."""

    def write(shown: Ui, name: str) -> None:
        if folder := os.environ.get("EXACT_VAE_SCREENSHOTS"):
            mode = "nodes2" if "nodes2" in request.node.name else "classic"
            shown.page.wait_for_timeout(800)  # Animations.
            clip = {"x": 60, "y": 48, "width": 960, "height": 480}
            shown.page.screenshot(path=str(Path(folder) / f"{name}_{mode}.png"), clip=clip)

    return write
