"""What package indexes and the registry of ComfyUI show: from pyproject.toml and from the installed package."""

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
RAW = "https://raw.githubusercontent.com/exact-vae/exact-vae/main/"


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_the_licence_as_setuptools_and_the_registry_both_take_it(pyproject: dict[str, Any]) -> None:
    """An SPDX text: setuptools from 77 on (a table is deprecated), comfy-cli 1.23.0, which writes it so itself."""
    assert pyproject["project"]["license"] == "MIT"
    assert pyproject["project"]["license-files"] == ["LICENSE"]
    assert pyproject["build-system"]["requires"] == ["setuptools>=77"]


def test_the_installed_package_says_the_same(pyproject: dict[str, Any]) -> None:
    try:
        built = importlib.metadata.metadata("exact-vae")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("exact-vae is not installed here")
    assert built["License-Expression"] == "MIT"
    assert built.get_all("License-File") == ["LICENSE"]
    urls = dict(entry.split(", ", 1) for entry in built.get_all("Project-URL") or [])
    assert urls == pyproject["project"]["urls"]


def test_the_links_that_the_registry_shows(pyproject: dict[str, Any]) -> None:
    assert {"Repository", "Documentation", "Issues"} <= set(pyproject["project"]["urls"])


@pytest.mark.parametrize(("field", "shape"), [("Icon", (1, 1)), ("Banner", (21, 9))])
def test_the_pictures_that_the_registry_shows(pyproject: dict[str, Any], field: str, shape: tuple[int, int]) -> None:
    """The registry wants a square of at most 400 pixels and a banner of 21 to 9."""
    address = pyproject["tool"]["comfy"][field]
    assert address.startswith(RAW)
    with Image.open(ROOT / address.removeprefix(RAW)) as picture:
        assert picture.width * shape[1] == picture.height * shape[0]
        assert field == "Banner" or picture.width <= 400
