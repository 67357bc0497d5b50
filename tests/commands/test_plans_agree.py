"""One machine, one image, one plan: that of the command line, of the Plan node, and the one that is run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE
from exact_vae.__main__ import main
from exact_vae.model_management import host, memory
from exact_vae.nodes import NODE_CLASS_MAPPINGS

MIB = 2**20
GIB = 2**30
pytestmark = pytest.mark.usefixtures("one_thread")

CASES: dict[str, tuple[str, tuple[int, int], float | None, int, bool]] = {
    "decode, ample": ("decode", (256, 192), None, 8 * GIB, False),
    "decode, what is free": ("decode", (256, 192), None, 10 * MIB, False),
    "decode, a budget": ("decode", (256, 192), 5, 8 * GIB, False),
    "decode, not whole cells": ("decode", (101, 75), 2, 8 * GIB, False),
    "encode, ample": ("encode", (256, 192), None, 8 * GIB, False),
    "encode, not whole cells": ("encode", (101, 75), 2, 8 * GIB, False),
    "decode, strips wait": ("decode", (256, 192), 3, 8 * GIB, True),
    "decode, little to wait in": ("decode", (256, 192), 5, 4 * MIB, True),
    "encode, strips wait": ("encode", (256, 192), 2.5, 8 * GIB, True),
}
"""Direction, width and height, MiB allowed, bytes free, and whether main memory is another one than the device's."""


@pytest.mark.parametrize("name", CASES)
def test_the_three_plans_are_one(
    name: str, small_vae: VAE, small_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    direction, (width, height), allowed, free, apart = CASES[name]
    monkeypatch.setattr(memory, "get_free_memory", lambda device: free)
    monkeypatch.setattr(host, "is_main_memory", lambda device: not apart)
    words = ["plan", "--vae", str(small_file), "--size", f"{width}x{height}", "--direction", direction]
    words += ["--dtype", "float32", "--device", "cpu"] + ([] if allowed is None else ["--memory", f"{allowed}MiB"])
    assert main([*words, "--json"]) == 0
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert main(words) == 0
    printed = capsys.readouterr().out.rstrip("\n")

    gib = 0.0 if allowed is None else allowed / 1024
    (text,) = NODE_CLASS_MAPPINGS["ExactVAEPlan"]().plan(small_vae, width, height, direction, gib)["result"]

    x = torch.zeros(1, 4, height // 8, width // 8) if direction == "decode" else torch.zeros(1, height, width, 3)
    getattr(small_vae, direction)(x, memory=None if allowed is None else f"{allowed}MiB")
    plan: Any = small_vae.last_plan

    assert told == json.loads(plan.as_json())
    assert printed == plan.table()
    assert text.splitlines()[1:] == plan.table().splitlines()
    assert [level["schedule"]["strip_rows"] for level in told["levels"]] == [one.strip_rows for one in plan.schedule]
    assert (told["peak_bytes"], told["host_bytes"]) == (plan.peak_bytes, plan.host_bytes)
    assert (plan.host_bytes > 0) is (apart and "wait" in name and free > GIB)


def test_what_is_said_about_main_memory_is_kept(
    small_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 8 * GIB)
    monkeypatch.setattr(host, "is_main_memory", lambda device: False)
    words = ["plan", "--vae", str(small_file), "--size", "256x192", "--device", "cpu", "--json"]
    found: list[int] = []
    for more in ([], ["--host-memory", "0"], ["--host-memory", "1GiB"]):
        assert main([*words, *more]) == 0
        found.append(json.loads(capsys.readouterr().out)["host_budget"])
    assert found == [4 * GIB, 0, GIB]
