"""The benchmark's own parts on made-up results and on a model of a few thousand parameters; nothing here is timed."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def case(bench: SimpleNamespace) -> Any:
    """Decoding 64 x 64 pixels with a narrow model."""
    levels = LevelsConfig(ch=16, widths=(16, 16, 32, 32), num_res_blocks=1)
    config = KLConfig(z_channels=4, embed_dim=4, encoder=levels, decoder=levels, num_groups=8)
    models = bench.case.Models(bench.case.random_model(config), torch.float32, torch.device("cpu"), config)
    return bench.case.make_case(models, "decode", 64)


def made_up_row(name: str, size: int, seconds: float, peak_bytes: int, **details: Any) -> dict[str, Any]:
    return {
        "name": name,
        "direction": "decode",
        "size": size,
        "dtype": "float32",
        "seconds": [seconds],
        "median_seconds": seconds,
        "peak_bytes": peak_bytes,
        "errors": {"max_error": 1e-6, "psnr": 120.0, "error64": 1e-7, "error64_ratio": 1.1, "finite": True},
        "details": details,
        "failure": None,
    }


def made_up_content(bench: SimpleNamespace) -> dict[str, Any]:
    sizes = {512: 1, 1024: 4}
    rows = [
        made_up_row(name, size, seconds * times, peak * times * 2**20)
        for size, times in sizes.items()
        for name, seconds, peak in (
            ("ExactVAE untiled", 5.0, 700),
            ("diffusers untiled", 5.0, 900),
            ("diffusers tiled", 6.0, 300),
            ("ExactVAE resident", 2.0, 270),
            ("ExactVAE spilled", 2.2, 150),
            ("ExactVAE in 25 %", 3.0, 70),
        )
    ]
    predictions = [
        {"direction": "decode", "dtype": "float32", "kind": kind, "size": size, "peak_bytes": share * size**2}
        for kind, share in (("resident", 1000), ("recompute", 500), ("spill", 510), ("smallest", 90))
        for size in (512, 1024, 4096)
    ]
    options = bench.bench.parse(["--device", "cpu", "--directions", "decode"])
    content = bench.bench.new_content(options, torch.device("cpu"))
    return content | {"results": rows, "predictions": predictions}


def test_the_command_line_and_its_defaults(bench: SimpleNamespace) -> None:
    options = bench.bench.parse(["--device", "cpu"])
    assert (options.sizes, options.dtypes, options.repeats) == ((512, 1024), ("float32", "bfloat16"), 3)
    assert options.directions == ("decode", "encode")
    assert options.float64_limit == 512
    assert options.output == ROOT / "benchmarks" / "results"
    quick = bench.bench.parse(["--quick", "--dtypes", "float16"])
    assert (quick.sizes, quick.dtypes, quick.repeats) == ((256,), ("float16",), 1)
    assert bench.bench.parse(["--sizes", "1024,512,512"]).sizes == (512, 1024)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("--sizes", "100"), ("--sizes", "0"), ("--dtypes", "int8"), ("--directions", "both"), ("--repeats", "0")],
)
def test_wrong_arguments_are_told(
    bench: SimpleNamespace, argument: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.bench.parse([argument, value])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert argument in error
    assert "expected" in error


def test_a_missing_gpu_is_told(
    bench: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        bench.bench.parse(["--device", "cuda"])
    assert "found none: use --device cpu" in capsys.readouterr().err


def test_candidates_are_chosen_by_a_part_of_their_names(bench: SimpleNamespace) -> None:
    choose = bench.candidates.choose
    assert list(choose("resident|^diff", comfyui=False)) == [
        "diffusers untiled",
        "diffusers tiled",
        "ExactVAE resident",
    ]
    assert not any(name.startswith("ComfyUI") for name in choose(None, comfyui=False))
    assert list(choose("comfyui", comfyui=True)) == ["ComfyUI untiled", "ComfyUI tiled"]
    with pytest.raises(ValueError, match="--only: expected a part of one of ExactVAE untiled"):
        choose("nothing", comfyui=True)


def test_medians_and_ratios(bench: SimpleNamespace) -> None:
    assert bench.measure.median([3.0, 1.0, 2.0]) == 2.0
    assert bench.measure.median([]) is None
    assert bench.measure.ratio(1.0, 4.0) == 0.25
    assert bench.measure.ratio(None, 4.0) is bench.measure.ratio(1.0, None) is bench.measure.ratio(1.0, 0.0) is None


def test_errors_are_shares_of_the_range(bench: SimpleNamespace) -> None:
    exact = torch.linspace(-1, 3, 100)
    result, untiled = exact + 0.04, exact - 0.02
    found = bench.measure.errors(result, exact, None)
    # Numbers rounded to float32: a millionth of 0.01 and of 40 dB.
    assert found["max_error"] == pytest.approx(0.01, rel=1e-4)
    assert found["psnr"] == pytest.approx(40, rel=1e-4)
    assert found["error64"] is None
    assert bench.measure.errors(result, untiled, exact)["error64_ratio"] == pytest.approx(2, rel=1e-4)
    assert bench.measure.errors(exact, exact, exact)["psnr"] is None
    broken = bench.measure.errors(torch.full((4,), torch.nan), torch.ones(4), torch.ones(4))
    assert broken == {"max_error": None, "psnr": None, "error64": None, "error64_ratio": None, "finite": False}


def test_failures_become_text(bench: SimpleNamespace) -> None:
    def fail(error: Exception) -> None:
        raise error

    attempt = bench.measure.attempt
    assert attempt(lambda: 3) == (3, None)
    assert attempt(lambda: fail(ValueError("one\ntwo"))) == (None, "ValueError: one two")
    assert attempt(lambda: fail(torch.OutOfMemoryError("CUDA out of memory."))) == (None, "out of memory")
    assert attempt(lambda: fail(MemoryError("not run: too large"))) == (None, "not run: too large")


def test_a_cell_takes_turns_and_survives_failures(bench: SimpleNamespace, case: Any) -> None:
    def broken(case: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    makers = {bench.candidates.UNTILED: bench.candidates.CANDIDATES[bench.candidates.UNTILED], "broken": broken}
    makers["again"] = makers[bench.candidates.UNTILED]
    said: list[str] = []
    rows = bench.rounds.run_cell(case, makers, repeats=2, float64=True, say=said.append)
    assert said[-4:] == [f"round {number} of 2: {name}" for number in (1, 2) for name in ("ExactVAE untiled", "again")]
    assert [row.failure for row in rows] == [None, "out of memory", None]
    assert [len(row.seconds) for row in rows] == [2, 0, 2]
    assert rows[2].errors["max_error"] == 0
    assert rows[0].errors["error64_ratio"] == 1
    assert rows[0].peak_bytes > 64 * 64 * 4 * 3
    assert set(rows[0].as_dict()) >= set(made_up_row("", 0, 0, 0))


@pytest.mark.parametrize("kind", ["resident", "recompute", "spilled"])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_our_candidates_are_exact(bench: SimpleNamespace, case: Any, direction: str, kind: str) -> None:
    case = bench.case.make_case(case.models, direction, 64)
    with torch.inference_mode():
        prepared = bench.candidates.CANDIDATES[f"ExactVAE {kind}"](case)
        untiled = bench.case.run_untiled(case.models.ours, direction, case.x)
        result, peak_bytes = bench.measure.metered_run(prepared.run, case.models.device)
    assert result.shape == case.result_shape
    # The numerical contract of the exact engine in float32.
    assert bench.measure.compare(result, untiled)["max_error"] < 2e-5
    assert (prepared.details["host_peak_bytes"] > 0) == (kind == "spilled")
    assert peak_bytes > case.result_bytes
    json.dumps(prepared.details, allow_nan=False)


def test_the_table_has_a_line_for_every_candidate(bench: SimpleNamespace) -> None:
    rows = [made_up_row("diffusers untiled", 512, 4.0, 2**30), made_up_row("ExactVAE resident", 512, 1.0, 2**28)]
    rows[1]["details"] = {"schedule": "resident, recompute", "predicted_bytes": 2**28, "work_ratio": 0.9}
    failed = made_up_row("ComfyUI untiled", 512, 0.0, 0)
    rows.append(failed | {"median_seconds": None, "peak_bytes": None, "errors": {}, "failure": "out of memory"})
    bench.report.add_ratios(rows, "diffusers untiled")
    assert [row["time_ratio"] for row in rows] == [1.0, 0.25, None]
    lines = bench.report.make_table(rows).splitlines()
    assert lines[0].split()[:2] == ["candidate", "seconds"]
    assert lines[2].split()[:6] == ["ExactVAE", "resident", "1", "0.25", "256", "MiB"]
    assert lines[2].endswith("recompute / resident; predicted 256 MiB, work x0.90")
    assert lines[3].endswith("-  out of memory")


def test_the_json_file_is_whole(bench: SimpleNamespace, tmp_path: Path) -> None:
    content = made_up_content(bench)
    bench.report.write_json(content, tmp_path / "bench_cpu.json")
    assert [path.name for path in tmp_path.iterdir()] == ["bench_cpu.json"]
    read = json.loads((tmp_path / "bench_cpu.json").read_text(encoding="utf-8"))
    assert read["results"] == content["results"]
    assert {"date", "machine", "settings", "memory_meter", "peak_resident_bytes", "attention", "overlap"} <= set(read)
    assert {"device", "processor", "threads", "torch"} <= set(read["machine"])
    assert read["settings"]["sizes"] == [512, 1024]


def test_attention_back_ends_are_compared_or_say_why_not(bench: SimpleNamespace) -> None:
    rows = bench.attention.attention_rows(torch.device("cpu"), {"float32": torch.float32}, 2, (32,))
    found = {row["name"]: row for row in rows}
    assert set(found) == {"xformers", "pytorch", "sliced", "streamed"}
    assert len(found["streamed"]["seconds"]) == 2
    assert found["sliced"]["peak_bytes"] > 0
    assert "streamed" in bench.report.attention_table(rows)


def test_overlap(bench: SimpleNamespace, case: Any) -> None:
    with torch.inference_mode():
        row = bench.overlap.overlap_row(case, 1) | {"dtype": "float32"}
    assert row["bytes_out"] > 0
    assert set(row["median_seconds"]) == {"spilled", "kept", "copies"}
    assert "64 px decode, float32" in bench.report.overlap_line(row)
    share = bench.overlap.hidden_share
    assert share({"spilled": 1.25, "kept": 1.0, "copies": 1.0}) == 0.75
    assert share({"spilled": 3.0, "kept": 1.0, "copies": 1.0}) == 0
    assert share({"spilled": None, "kept": 1.0, "copies": 1.0}) is None


def test_names_in_a_heap_are_moved_apart(bench: SimpleNamespace) -> None:
    assert bench.labels.spread([], 10) == []
    assert bench.labels.spread([0, 50], 10) == [0, 50]
    assert bench.labels.spread([20, 20, 80], 10) == [15, 25, 80]
    assert bench.labels.spread([0, 11, 12, 13], 10) == [-6, 4, 14, 24]


def test_both_plots_are_drawn(bench: SimpleNamespace, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = bench.plots.draw(made_up_content(bench), tmp_path)
    assert [path.name for path in written] == ["bench_cpu_memory_time.png", "bench_cpu_size_memory.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)
    assert bench.plots.bytes_label(2**29) == "512 MiB"
    nothing = made_up_content(bench) | {"results": [], "predictions": []}
    assert bench.plots.draw(nothing, tmp_path) == []
