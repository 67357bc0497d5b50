"""`python3 run.py bench`: time, memory and error of decoding and encoding, ours and others', side by side.

One process, all candidates in turn, round by round. Nothing is downloaded; weights are random and equal for everybody.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import attention
import candidates
import measure
import others
import overlap
import planned
import plots
import report
import torch
from case import CONFIG, DIRECTIONS, DTYPES, Models, make_case, random_model
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL
from rounds import run_cell

FULL = {"sizes": (512, 1024), "dtypes": ("float32", "bfloat16"), "repeats": 3}
QUICK = {"sizes": (256,), "dtypes": ("float32",), "repeats": 1}
PREDICTED_SIZES = (512, 1024, 2048, 4096, 8192, 16384)
OUTPUT = Path(__file__).resolve().parent / "results"


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line; what it leaves open is filled from FULL or QUICK."""
    parser = argparse.ArgumentParser(prog="run.py bench", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=None, help="default: cuda where there is one")
    parser.add_argument("--sizes", type=_sizes, help="sides of square images in pixels; default: 512,1024")
    parser.add_argument("--directions", type=_names(DIRECTIONS), default=DIRECTIONS, help="default: decode,encode")
    parser.add_argument("--dtypes", type=_names(tuple(DTYPES)), help="default: float32,bfloat16")
    parser.add_argument("--repeats", type=_positive, help="timed rounds after the warm-up; default: 3")
    parser.add_argument("--quick", action="store_true", help="256 px, float32, one round, unless told otherwise")
    parser.add_argument("--only", metavar="PATTERN", help="regular expression for the names of candidates")
    parser.add_argument("--float64-limit", type=int, default=512, metavar="PIXELS", help="largest size run in float64")
    parser.add_argument("--no-tf32", action="store_true", help="CUDA: full float32 in convolutions and products")
    parser.add_argument("--no-predictions", action="store_true", help="leave out the plans of sizes that are not run")
    parser.add_argument("--date", default=report.today(), help="date to write into the report")
    parser.add_argument("--output", type=Path, default=OUTPUT, metavar="DIR", help="default: benchmarks/results")
    options = parser.parse_args(argv)
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.device is None:
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: expected a CUDA device that PyTorch can use, found none: use --device cpu")
    return options


def _names(allowed: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse_names(text: str) -> tuple[str, ...]:
        names = tuple(dict.fromkeys(text.split(",")))
        if not set(names) <= set(allowed):
            raise argparse.ArgumentTypeError(f"expected some of {','.join(allowed)}, got {text!r}")
        return names

    return parse_names


def _sizes(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() and int(part) > 0 and int(part) % CONFIG.factor == 0 for part in parts):
        raise argparse.ArgumentTypeError(f"expected multiples of {CONFIG.factor} such as 512,1024, got {text!r}")
    return tuple(sorted({int(part) for part in parts}))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of rounds of at least 1, got {text!r}")
    return int(text)


def say(text: str) -> None:
    """Progress, apart from the results."""
    print(f"bench: {text}", file=sys.stderr, flush=True)


def has_comfyui(device: torch.device) -> bool:
    """Whether a checkout is named and can be imported; one line says why not."""
    if not others.comfyui_folder():
        return False
    module, failure = measure.attempt(lambda: others.import_comfyui(device))
    if module is None:
        print(f"ComfyUI left out: {failure}")
    return module is not None


@dataclass
class Bench:
    """One run of the benchmark: what is asked for and what is known so far."""

    options: argparse.Namespace
    device: torch.device
    makers: dict[str, candidates.Maker]
    content: dict[str, Any]
    base: AutoencoderKL

    @property
    def path(self) -> Path:
        """The JSON file."""
        return self.options.output / f"bench_{self.device.type}.json"

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """Those asked for, by name."""
        return {name: DTYPES[name] for name in self.options.dtypes}

    def save(self) -> None:
        """Write what is known; an interrupted run keeps it."""
        self.content["peak_resident_bytes"] = measure.peak_resident_bytes()
        report.write_json(self.content, self.path)

    def predict(self) -> None:
        """Peaks of our plans at sizes that nobody has to run."""
        if self.options.no_predictions:
            return
        sizes = sorted({*PREDICTED_SIZES, *self.options.sizes})
        rows, failure = measure.attempt(lambda: planned.predict(self.base, self.dtypes, sizes, self.device.type))
        self.content["predictions"] = rows or []
        if failure:
            print(f"No predictions: {failure}")

    def compare(self) -> None:
        """All candidates at all sizes, directions and dtypes."""
        options = self.options
        for name, dtype in self.dtypes.items():
            models = Models(self.base, dtype, self.device)
            for direction, size in itertools.product(options.directions, options.sizes):
                say(f"{direction}, {size} px, {name}")
                case, float64 = make_case(models, direction, size), size <= options.float64_limit
                rows = run_cell(case, self.makers, repeats=options.repeats, float64=float64, say=say)
                results = [row.as_dict() for row in rows]
                report.add_ratios(results, candidates.BASELINE)
                self.content["results"] += results
                self.save()
                print(f"\n{direction}, {size} x {size} pixels, {name}, {self.device.type}")
                print(report.make_table(results), flush=True)
        print(f"\nMemory: {self.content['memory_meter']}; weights and input not counted, result counted.")
        print(report.LEGEND, flush=True)

    def compare_attention(self) -> None:
        """Attention back ends, on a GPU."""
        if self.device.type != "cuda":
            return
        repeats = max(3, self.options.repeats)
        rows, failure = measure.attempt(lambda: attention.attention_rows(self.device, self.dtypes, repeats))
        self.content["attention"] = rows or []
        table = report.attention_table(rows) if rows else failure
        print(f"\nAttention, one head of {attention.WIDTH}\n{table}", flush=True)

    def measure_overlap(self) -> None:
        """Copies behind computing, on a GPU."""
        if self.device.type != "cuda":
            return
        repeats, size = max(3, self.options.repeats), max(self.options.sizes)

        def run(dtype: torch.dtype) -> dict[str, Any]:
            return overlap.overlap_row(make_case(Models(self.base, dtype, self.device), "decode", size), repeats)

        for name, dtype in self.dtypes.items():
            row, failure = measure.attempt(lambda dtype=dtype: run(dtype))
            self.content["overlap"].append({"dtype": name, "failure": failure, **(row or {})})
            print(f"\n{report.overlap_line(self.content['overlap'][-1])}", flush=True)


def new_content(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """The report before the first result."""
    settings = {name: value for name, value in vars(options).items() if name not in ("date", "output")}
    settings |= {"model": "KL-f8, full width, random weights", "batch": 1}
    return {
        "date": options.date,
        "machine": report.describe_machine(device),
        "settings": settings | {"diffusers_sample_size": others.SAMPLE_SIZE},
        "memory_meter": measure.memory_meter(device),
        "peak_resident_bytes": None,
        "results": [],
        "predictions": [],
        "attention": [],
        "overlap": [],
    }


def run(options: argparse.Namespace) -> None:
    """Everything that was asked for; the JSON file is written again after every step."""
    device = torch.device(options.device)
    if options.no_tf32:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    makers = candidates.choose(options.only, comfyui=has_comfyui(device))
    options.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(options, device, makers, new_content(options, device), random_model())
    for step in (bench.compare, bench.compare_attention, bench.measure_overlap, bench.predict):
        step()
        bench.save()
    drawn, failure = measure.attempt(lambda: plots.draw(bench.content, options.output))
    print(f"\nWritten: {', '.join(str(file) for file in (bench.path, *(drawn or ())))}")
    if failure:
        print(f"No plots: {failure}")


def main(argv: Sequence[str]) -> int:
    """Exit code 2 for a command line that cannot be used."""
    try:
        run(parse(argv))
    except (ValueError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
