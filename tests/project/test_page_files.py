"""The files for the page are served once, whatever the folder that the pack lies in is called."""

from __future__ import annotations

import sys
from pathlib import Path

import exact_vae
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]


def served(folder_name: str) -> list[str]:
    """Addresses of our scripts by ComfyUI's two rules (nodes.py, load_custom_node, from v0.3.64 to 0.33).

    `[tool.comfy] web` is served under the project's name, `WEB_DIRECTORY` under the folder's.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders: dict[str, Path] = {}
    if web := project["tool"]["comfy"].get("web"):
        folders[project["project"]["name"]] = ROOT / web
    folders[folder_name] = ROOT / exact_vae.WEB_DIRECTORY
    scripts = [(name, path.relative_to(at)) for name, at in folders.items() for path in sorted(at.rglob("*.js"))]
    return [f"/extensions/{name}/{path.as_posix()}" for name, path in scripts]


@pytest.mark.parametrize("folder_name", ["exact-vae", "ExactVAE-main", "ComfyUI-ExactVAE"])
def test_each_script_is_served_once(folder_name: str) -> None:
    expected = [f"/extensions/{folder_name}/{path.name}" for path in sorted((ROOT / "js").glob("*.js"))]
    assert expected
    assert served(folder_name) == expected
