"""The core's own VAEs made exact, and ours beside them, in a process of the host without a server."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from exact_vae.tests.host.server import ROOT

pytestmark = pytest.mark.host

BOUND = 2e-5
"""The project's bound for float32, as a share of the range."""
EXACT = (
    *("taesd", "taesdxl", "taesd3", "taef1", "taef2"),
    *("SD", "SD3, Flux.1", "SD, diffusers", "x4-upscaler", "Flux.2", "Flux.2 small decoder"),
    *("Wan 2.1, Qwen-Image", "Qwen-Image-Layered", "Wan 2.1, twice as large", "Wan 2.2"),
    *("Hunyuan-Image", "TAEW2.1", "TAEW2.2", "TAELTX", "TAEHV 1.5"),
)
NEWER = (
    *("taef2", "Flux.2", "Flux.2 small decoder", "Hunyuan-Image"),
    *("Qwen-Image-Layered", "Wan 2.1, twice as large", "Wan 2.2"),
    *("TAEW2.1", "TAEW2.2", "TAELTX", "TAEHV 1.5", "TAEHV of MiniMax H3"),
)
"""What older versions of the core cannot load."""
OTHERS = {
    "SVD": "expected Encoder or Decoder, got VideoDecoder",  # the host decides how many frames go together
    "Stable Cascade, stage A": "expected an autoencoder of one of the families known here",
    "Stable Cascade, stage C": "expected an autoencoder of one of the families known here",
    "TAEHV of MiniMax H3": "expected another model than MiniMax H3",
    "pixel_space": "expected an autoencoder of one of the families known here",
}


def run(comfy_dir: Path, python: str, script: str, folder: Path) -> dict[str, Any]:
    """What a script of this folder prints."""
    command = [python, str(Path(__file__).with_name(script)), str(ROOT), str(folder)]
    result = subprocess.run(command, cwd=comfy_dir, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def walked(comfy_dir: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(comfy_dir, comfy_python, "vaes_of_core.py", tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def told(comfy_dir: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(comfy_dir, comfy_python, "ours_in_core.py", tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def loaded(comfy_dir: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(comfy_dir, comfy_python, "load_vae_in_core.py", tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def clips(comfy_dir: Path, comfy_python: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(comfy_dir, comfy_python, "clips_in_core.py", tmp_path_factory.mktemp("files"))


def of(walked: dict[str, Any], name: str) -> Any:
    """What became of a VAE; skipped where this core has no such one."""
    if walked[name] is None and name in NEWER:
        pytest.skip(f"this version of the core builds no {name}")
    assert walked[name] is not None, f"the core built no {name}"
    return walked[name]


@pytest.mark.parametrize("name", EXACT)
def test_every_vae_with_a_rule_is_exact(walked: dict[str, Any], name: str) -> None:
    for what, ran in of(walked, name).items():
        assert (ran["method"], ran["reason"]) == ("exact", None), what
        assert isinstance(ran["off"], float), ran["off"]
        assert ran["off"] <= BOUND, what


@pytest.mark.parametrize("name", ["taesd", "taesdxl", "taesd3", "taef1", "taef2", "Flux.2", "Flux.2 small decoder"])
def test_both_loader_nodes_give_the_same(loaded: dict[str, Any], name: str) -> None:
    """Flux.2's latents have 128 channels of 16 pixels a cell, as EmptyFlux2LatentImage makes them; TAEF2's do, too."""
    found = of(loaded, name)
    assert found["channels"][0] == found["channels"][1]
    if name in NEWER:
        assert (found["channels"][0], found["shape"]) == (128, [1, 128, 4, 6])
    for what in ("decode", "encode"):
        assert found[f"{what}, exact"], what
        assert isinstance(found[what], float), found[what]
        assert found[what] <= 1e-5, what


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_runs_by_its_own_method_and_says_why(walked: dict[str, Any], name: str) -> None:
    ran = of(walked, name)["decode"]
    assert ran["method"] == "host"
    assert OTHERS[name] in ran["reason"]


def test_no_vae_is_left_out(walked: dict[str, Any]) -> None:
    assert set(walked) == {*EXACT, *OTHERS}


def test_ours_has_every_public_name_of_the_core_s(told: dict[str, Any]) -> None:
    assert told["missing"] == []


def test_every_call_of_packs_gives_what_the_core_s_vae_gives(told: dict[str, Any]) -> None:
    assert len(told["calls"]) > 8
    for name, results in told["calls"].items():
        for whose, off in results.items():
            assert isinstance(off, float), f"{name}, {whose}: {off}"
            assert off <= BOUND, f"{name}, {whose}"


def test_every_question_is_answered_as_the_core_s_vae_answers(told: dict[str, Any]) -> None:
    assert len(told["answers"]) >= 4
    for name, answers in told["answers"].items():
        assert answers["exact"] == answers["core"], name
        assert answers["ours"] == answers["core"], name


@pytest.mark.parametrize("whose", ["exact", "ours"])
def test_another_patcher_counts(told: dict[str, Any], whose: str) -> None:
    """SUPIR patches the encoder of a clone; Select VAE Device clones, too."""
    assert told["patched"]["changed"] > 0.1
    found = told["patched"][whose]
    for name in ("supir", "again", "moved"):
        assert isinstance(found[name], float), f"{name}: {found[name]}"
        assert found[name] <= BOUND, name
    assert found["exact"]
    assert found["by its own patcher"]


@pytest.mark.parametrize("frames", [5, 17])
def test_clips_through_every_node_are_the_core_s_untiled_ones(clips: dict[str, Any], frames: int) -> None:
    """Behind Make VAE Exact, and by our nodes, whatever is said of tiles in space and time."""
    ways = clips[str(frames)]
    assert ways["core, tiled"]["off"] > 0.01  # the core's own tiles are another picture
    for name, ran in ways.items():
        if name not in ("core, plain", "core, tiled"):
            assert ran["shape"] == [frames, 64, 80, 3], name
            assert isinstance(ran["off"], float), f"{name}: {ran['off']}"
            assert ran["off"] <= BOUND, name
        if "40 MiB" in name:
            assert ran["peak"] - frames * 64 * 80 * 3 * 4 <= 40 * 2**20
        if "made exact" in name:
            assert ran["line"].startswith("exact · ")
            assert f" · {frames} frames, " in ran["line"]


def test_weights_as_the_core_hands_them_out_are_in_the_plan(comfy_dir: Path, comfy_python: str, tmp_path: Path) -> None:
    """Pictures and clips; stored weights, those that the core patches on their way, and those of another dtype."""
    told = run(comfy_dir, comfy_python, "weights_in_core.py", tmp_path)
    assert len(told) == 6
    for name, (metered, planned) in told.items():
        assert metered <= planned, name
        if "stored" not in name:  # nothing is counted for those that are used as they are
            assert planned > told[f"{name.split(',')[0]}, stored"][1], name
