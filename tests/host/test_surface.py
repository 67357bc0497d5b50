"""What the host shows of itself is the same with and without this pack, plus our nodes, pages, texts and examples."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from exact_vae.tests.host.client import Client
from exact_vae.tests.host.conftest import EXAMPLE_NAME, VAE_NAME
from exact_vae.tests.host.server import PACK, ROOT, Server

pytestmark = pytest.mark.host

OURS = [
    "ExactVAEApply",
    "ExactVAEDecode",
    "ExactVAEDecodeTiled",
    "ExactVAEEncode",
    "ExactVAEEncodeForInpaint",
    "ExactVAEEncodeTiled",
    "ExactVAELoader",
    "ExactVAEPlan",
]


@pytest.fixture(scope="module")
def alone(comfy_dir: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """/object_info of the same host without the pack."""
    base = tmp_path_factory.mktemp("alone")
    (base / "models" / "vae").mkdir(parents=True)
    for name in (VAE_NAME, EXAMPLE_NAME):
        (base / "models" / "vae" / name).touch()  # menus of files are to be the same, too
    server = Server(comfy_dir, comfy_python, base, pack=None)
    server.stop()
    return server.object_info


def test_nothing_of_the_core_is_renamed_or_replaced(server: Server, alone: dict[str, Any]) -> None:
    with_pack = server.object_info
    assert sorted(with_pack.keys() - alone.keys()) == OURS
    assert not alone.keys() - with_pack.keys()
    assert [name for name in alone if alone[name] != with_pack[name]] == []


def test_core_vae_nodes_are_the_cores(server: Server, alone: dict[str, Any]) -> None:
    info = server.object_info
    for name in ("VAEDecode", "VAEEncode", "VAEDecodeTiled", "VAEEncodeTiled", "VAEEncodeForInpaint", "VAELoader"):
        assert info[name]["display_name"] == alone[name]["display_name"]
        assert info[name]["python_module"] == "nodes"


def test_our_nodes_are_described(server: Server) -> None:
    info = server.object_info
    for name in OURS:
        node = info[name]
        assert node["python_module"] == f"custom_nodes.{PACK}"
        assert "ExactVAE" in node["display_name"] or name == "ExactVAEApply"
        assert node["description"]
        for inputs in node["input"].values():
            for input_name, spec in inputs.items():
                assert len(spec) > 1 or not isinstance(spec[0], str), f"{name}.{input_name} has no tooltip"


def check_served(client: Client, pack: str) -> None:
    """Our scripts come once, under the folder's name, and the help pages with them."""
    expected = sorted(f"/extensions/{pack}/{path.name}" for path in (ROOT / "js").glob("*.js"))
    names = {Path(path).name for path in expected}
    served = [path for path in client.get("/extensions") if Path(path).name in names and "/core/" not in path]
    assert sorted(served) == expected
    for path in served:
        assert client.fetch(path)
    for name in OURS:
        assert client.fetch(f"/extensions/{pack}/docs/{name}.md")


def test_files_of_the_browser_are_served_once(client: Client) -> None:
    check_served(client, PACK)


def test_they_are_served_once_under_the_project_s_own_name(comfy_dir: Path, comfy_python: str, tmp_path: Path) -> None:
    server = Server(comfy_dir, comfy_python, tmp_path, pack="exact-vae")
    try:
        with Client(server.port) as client:
            check_served(client, "exact-vae")
    finally:
        server.stop()


def test_examples_are_offered(client: Client) -> None:
    names = sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json"))
    assert names
    assert sorted(client.get("/workflow_templates")[PACK]) == names
    for name in names:
        assert client.get(f"/api/workflow_templates/{PACK}/{name}.json")["nodes"]


def test_texts_of_other_languages_are_offered(client: Client) -> None:
    if not (ROOT / "locales").is_dir():
        pytest.skip("no locales yet")
    texts = client.get("/i18n")
    for language in ("en", "zh"):
        assert set(OURS) <= texts[language]["nodeDefs"].keys()


def test_the_start_went_without_complaints_about_us(server: Server) -> None:
    start, ready, _ = server.text().partition("To see the GUI go to")  # later come the errors that other tests provoke
    assert ready
    lines = [line for line in start.splitlines() if PACK in line or "exact_vae_test_nodes" in line]
    assert lines
    complaints = [line for line in lines if re.search("failed|error|warning|cannot", line, re.IGNORECASE)]
    assert complaints == []
