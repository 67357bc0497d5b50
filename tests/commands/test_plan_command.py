"""`exact-vae plan` and the memory laws of `exact-vae info`: told from headers alone, as text and as JSON."""

import gc
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, save
from exact_vae.__main__ import main
from exact_vae.model_management import memory
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny

Run = Any
LAW = re.compile(
    r"resident (\d+) \((.*), work (\d\.\d\d) x untiled\), recompute (\d+) \((.*), work (\d\.\d\d) x untiled\)"
)


@pytest.fixture
def run(small_file: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """main() for the small VAE: (exit code, what it printed, what it said went wrong)."""

    def call(*arguments: object, vae: Path | None = small_file) -> tuple[int, str, str]:
        options = ["--vae", str(vae), "--device", "cpu"] if vae is not None else []
        code = main(["plan", *map(str, arguments), *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def plan_of(run: Run, *arguments: object) -> dict[str, Any]:
    code, out, err = run(*arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def test_the_text_has_a_line_for_every_level_and_the_totals(run: Run) -> None:
    code, out, err = run("--size", "512x256", "--memory", "30MiB", "--dtype", "float32")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split("  ")[0] == "level"
    planes = ["64 x 32 x 64", "128 x 64 x 64", "256 x 128 x 64", "512 x 256 x 64"]
    assert [plane in line for plane, line in zip(planes, lines[1:5], strict=True)] == [True] * 4
    assert re.fullmatch(r"peak [\d.]+ MiB of a budget of 30\.0 MiB; work \d\.\d\d x untiled; 0 B moved", lines[5])
    assert lines[6:]  # what was passed over, and why
    for line in lines[6:]:
        assert re.fullmatch(r"level \d rejected: .*: needs [\d.]+ MiB of 30\.0 MiB", line)


def test_json_tells_the_same_as_numbers(run: Run) -> None:
    plan = plan_of(run, "--size", "512x256", "--memory", "30MiB", "--dtype", "float32")
    assert plan["shape"] == [1, 4, 32, 64]
    assert plan["dtype"] == "float32"
    assert (plan["device_budget"], plan["host_budget"]) == (30 * 2**20, 0)
    assert 0 < plan["peak_bytes"] <= 30 * 2**20
    assert (plan["host_bytes"], plan["moved_bytes"]) == (0, 0)
    assert 0.4 < plan["work_ratio"] < 3
    assert [level["height"] for level in plan["levels"]] == [32, 64, 128, 256]
    assert max(level["need"]["peak_bytes"] for level in plan["levels"]) == plan["peak_bytes"]
    assert all(level["schedule"]["strip_rows"] >= 1 for level in plan["levels"])
    assert all(level["schedule"]["name"] for level in plan["levels"])


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_the_plan_is_the_one_that_is_run(run: Run, small_vae: VAE, direction: str) -> None:
    """Also for sizes that are cropped to whole latent cells."""
    told = plan_of(run, "--size", "101x75", "--memory", "2MiB", "--dtype", "float32", "--direction", direction)
    x = torch.randn(1, 4, 9, 12) if direction == "decode" else torch.rand(1, 75, 101, 3)
    getattr(small_vae, direction)(x, memory="2MiB")
    done: Any = small_vae.last_plan
    assert told == json.loads(done.as_json())


@pytest.mark.parametrize("name", ["loader.load_vae", "loaded.load_model"])
def test_nothing_is_loaded(run: Run, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(f"exact_vae.model_management.{name}", lambda *a, **k: pytest.fail("loaded"))
    assert run("--size", "64x64")[0] == 0


def test_the_budget_is_what_is_free_unless_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "get_free_memory", lambda device: 2**30)
    assert plan_of(run, "--size", "64x64")["device_budget"] == 2**30 - 256 * 2**20
    assert plan_of(run, "--size", "64x64", "--memory", "1.5GiB")["device_budget"] == 3 * 2**29


def test_host_memory_lets_strips_wait_there(run: Run) -> None:
    arguments = ("--size", "2048x2048", "--memory", "200MiB", "--dtype", "bfloat16")
    plan = plan_of(run, *arguments, "--host-memory", "8GiB")
    assert plan["host_budget"] == 8 * 2**30
    assert plan["host_bytes"] > 0
    assert plan["moved_bytes"] >= 2 * plan["host_bytes"]
    assert plan["peak_bytes"] <= 200 * 2**20
    code, out, _ = run(*arguments, "--host-memory", "8GiB")
    assert code == 0
    assert "host memory " in out
    assert " + spill" in out


def test_less_memory_never_takes_less_work(run: Run) -> None:
    ratios = [plan_of(run, "--size", "1024x1024", "--memory", f"{size}MiB")["work_ratio"] for size in (4000, 400, 200)]
    assert ratios == sorted(ratios)


def test_the_dtype_halves_the_bytes(run: Run) -> None:
    """But for small tensors, which are float32 in any case."""
    peaks = [plan_of(run, "--size", "1024x1024", "--dtype", kind)["peak_bytes"] for kind in ("float32", "bfloat16")]
    assert 0.45 < peaks[1] / peaks[0] < 0.6


def test_the_bundled_vae_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--size", "256x256", "--memory", "1GiB", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["peak_bytes"] > 0


def test_quiet_prints_nothing(run: Run) -> None:
    assert run("--size", "64x64", "--quiet") == (0, "", "")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--size", "big"), "--size: expected WIDTHxHEIGHT in pixels, got 'big': write it like 4096x4096"),
        (("--size", "512"), "--size: expected WIDTHxHEIGHT in pixels, got '512': write it like 4096x4096"),
        (("--size", "512x-8"), "--size: expected WIDTHxHEIGHT in pixels, got '512x-8': write it like 4096x4096"),
        (("--size", "0x0"), "--size: expected at least 8 x 8, got 0x0: enlarge the image"),
        (("--size", "7x512"), "--size: expected at least 8 x 8, got 7x512: enlarge the image"),
        (("--size", "64x64", "--memory", "0"), "memory: expected at least 1 byte and less than 2^63, got '0': give"),
        (("--size", "64x64", "--memory=-1GiB"), "memory: expected an amount such as 2GiB, 800MiB or 2147483648, got"),
        (("--size", "64x64", "--memory", "plenty"), "memory: expected an amount such as 2GiB, 800MiB or 2147483648,"),
        (("--size", "64x64", "--host-memory", "some"), "--host-memory: expected an amount such as 2GiB, 800MiB or"),
        (("--size", "64x64", "--dtype", "int8"), "dtype: "),
        (("--size", "4096x4096", "--memory", "1MiB"), "4096 x 4096: expected a budget of at least "),
    ],
)
def test_what_cannot_be_planned_is_one_line_and_exit_code_2(run: Run, arguments: tuple[str, ...], text: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"exact-vae: {text}")
    assert len(err.splitlines()) == 1


def test_a_file_that_is_not_there(run: Run, tmp_path: Path) -> None:
    absent = tmp_path / "none.safetensors"
    code, out, err = run("--size", "64x64", vae=absent)
    assert (code, out) == (2, "")
    assert err == f"exact-vae: {absent}: expected a weight file, found none there: check the path\n"


@pytest.mark.parametrize("arguments", [[], ["--size"], ["--size", "64x64", "--direction", "sideways"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", *arguments])
    assert caught.value.code == 2
    assert "usage: exact-vae plan" in capsys.readouterr().err


@pytest.fixture
def tiny_halves(tmp_path: Path) -> dict[str, Path]:
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    paths = {half: tmp_path / f"{half}.safetensors" for half in ("encoder", "decoder")}
    for half, path in paths.items():
        save(model, path, layout=f"taesd-{half}")
    return paths


def test_half_a_model_plans_its_direction(run: Run, tiny_halves: dict[str, Path]) -> None:
    code, _, err = run("--size", "64x64", "--direction", "encode", vae=tiny_halves["encoder"])
    assert (code, err) == (0, "")
    code, _, err = run("--size", "64x64", vae=tiny_halves["encoder"])
    assert code == 2
    assert err == "exact-vae: AutoencoderTiny: expected a decoder, got none: load the other half too\n"


def facts_of(capsys: pytest.CaptureFixture[str], *paths: object) -> dict[str, Any]:
    assert main(["info", *map(str, paths), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_info_tells_the_memory_laws(small_file: Path, capsys: pytest.CaptureFixture[str], direction: str) -> None:
    law = facts_of(capsys, small_file)[f"exact {direction}, elements per pixel (16-bit at 4096 x 4096)"]
    found = LAW.fullmatch(law)
    assert found is not None
    resident, recompute = int(found[1]), int(found[4])
    # By hand: at full size the plane and the block's inner one, 32 channels each; recompute keeps the plane alone. The
    # decoder's first block there still has 64 channels, and its 32-channel results stand beside them.
    assert 64 <= resident <= 110
    assert 32 <= recompute < resident
    assert float(found[3]) <= float(found[6]) < 2  # work for memory


def test_info_tells_the_laws_of_the_half_there_is(
    tiny_halves: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    facts = facts_of(capsys, tiny_halves["decoder"])
    laws = [name for name in facts if name.startswith("exact ")]
    assert laws == ["exact decode, elements per pixel (16-bit at 4096 x 4096)"]
    assert LAW.fullmatch(facts[laws[0]])


LOADED = """
import sys
from exact_vae.__main__ import main
code = main(["plan", "--size", "64x64", "--device", "cpu", "--quiet"])
print(code, sorted({"PIL", "lightning", "diffusers", "skimage", "matplotlib", "xformers"} & set(sys.modules)))
"""


def test_it_starts_without_what_it_does_not_need() -> None:
    """`benchmarks/start.py` tells the seconds."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("0 []\n", "")


@pytest.mark.parametrize("running", [True, False])
def test_the_collector_is_as_it_was(run: Run, running: bool) -> None:
    if not running:
        gc.disable()
    try:
        assert run("--size", "64x64")[0] == 0
        assert run("--size", "no")[0] == 2
        assert gc.isenabled() is running
    finally:
        gc.enable()
