"""Fixtures that put an imitated ComfyUI into sys.modules for one test: no host is needed to test what talks to one."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from .host import StubHost
from .make import make_host


def _registered(new: bool, monkeypatch: pytest.MonkeyPatch) -> StubHost:
    host = make_host(new)
    for name in [name for name in sys.modules if name == "comfy" or name.startswith("comfy.")]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in host.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return host


@pytest.fixture
def old_host(monkeypatch: pytest.MonkeyPatch) -> StubHost:
    """ComfyUI as of v0.3.64."""
    return _registered(False, monkeypatch)


@pytest.fixture
def new_host(monkeypatch: pytest.MonkeyPatch) -> StubHost:
    """ComfyUI with the interfaces of newer versions."""
    return _registered(True, monkeypatch)


@pytest.fixture(params=["old", "new"])
def stub_host(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubHost]:
    """Both, one after the other. Weights that were never given back fail the test."""
    host = _registered(request.param == "new", monkeypatch)
    yield host
    left = {name: count for name, count in host.pinned.items() if count}
    assert not left, f"weights fetched with offloadable=True and never released: {left}"
