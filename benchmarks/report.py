"""The report: what machine it was, tables for people, JSON for everything else."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from exact_vae.vae_model.errors.bytesize import format_bytes
from exact_vae.vae_model.kernels.cpu.kernels import kernels
from measure import ratio

FORMAT = 1
"""Of the JSON file; counts up when a reader has to change."""
HEADINGS = ("candidate", "seconds", "x diffusers", "peak memory", "max error", "PSNR", "x error64", "remarks")

WIDEST = 110
LEGEND = """Errors: worst difference from ExactVAE untiled over the range of its result, PSNR over the same range;
"x error64": mean error against a float64 run of the same weights, over that of ExactVAE untiled."""


def processor_name() -> str:
    """The CPU as its maker calls it, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def driver_version() -> str | None:
    """Of the NVIDIA driver; None where its tool is absent."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout.strip().splitlines() or [None])[0]


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Where the figures come from."""
    facts: dict[str, Any] = {
        "device": device.type,
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "processor_kernels": device.type == "cpu" and kernels() is not None,
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        facts |= {
            "gpu": torch.cuda.get_device_name(device),
            "gpu_bytes": torch.cuda.get_device_properties(device).total_memory,
            "driver": driver_version(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "tf32_convolutions": torch.backends.cudnn.allow_tf32,
            "tf32_products": torch.backends.cuda.matmul.allow_tf32,
        }
    return facts


def today() -> str:
    """ISO date."""
    return datetime.date.today().isoformat()


def add_ratios(rows: Sequence[dict[str, Any]], baseline: str) -> None:
    """Every row's time over that of the baseline in the same cell, written into the rows."""
    for row in rows:
        base = next((other["median_seconds"] for other in rows if other["name"] == baseline), None)
        row["time_ratio"] = ratio(row["median_seconds"], base)


def make_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of one cell as text."""
    return align([HEADINGS, *(_cells(row) for row in rows)])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    errors = row["errors"]
    return (
        row["name"],
        number(row["median_seconds"], ".3g"),
        number(row.get("time_ratio"), ".2f"),
        "-" if row["peak_bytes"] is None else format_bytes(row["peak_bytes"]),
        number(errors.get("max_error"), ".1e"),
        number(errors.get("psnr"), ".1f"),
        number(errors.get("error64_ratio"), ".2f"),
        (row["failure"] or _remarks(row))[:WIDEST],
    )


def _remarks(row: dict[str, Any]) -> str:
    """What a plan chose, in a few words; and a result that is none."""
    details, remarks = row["details"], list[str]()
    if not row["errors"].get("finite", True):
        remarks.append("result has NaN or infinity")
    if "predicted_bytes" in details:
        remarks.append(" / ".join(dict.fromkeys(reversed(details["schedule"].split(", ")))))
        remarks.append(f"predicted {format_bytes(details['predicted_bytes'])}, work x{details['work_ratio']:.2f}")
    if details.get("host_peak_bytes"):
        remarks.append(f"{format_bytes(details['host_peak_bytes'])} of host memory besides")
    return "; ".join(remarks)


def number(value: float | None, form: str) -> str:
    """A dash for what is not known."""
    return "-" if value is None else format(value, form)


def align(lines: Sequence[Sequence[str]]) -> str:
    """Columns of equal width, the first and the last to the left, figures to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    last = len(widths) - 1
    text: list[str] = []
    for line in lines:
        cells = [
            cell.ljust(width) if column in (0, last) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def attention_table(rows: Iterable[dict[str, Any]]) -> str:
    """Attention back ends, a line for each."""
    lines = [("back end", "dtype", "tokens", "seconds", "peak memory", "remarks")]
    for row in rows:
        peak = "-" if row["peak_bytes"] is None else format_bytes(row["peak_bytes"])
        facts = (row["name"], row["dtype"], str(row["tokens"]), number(row["median_seconds"], ".3g"), peak)
        lines.append((*facts, row["failure"] or ""))
    return align(lines)


def overlap_line(row: dict[str, Any]) -> str:
    """One spilled decode in a sentence."""
    if row.get("failure"):
        return f"copy overlap, {row['dtype']}: {row['failure']}"
    spilled, kept, copies = (number(row["median_seconds"][name], ".3g") for name in ("spilled", "kept", "copies"))
    moved = format_bytes(row["bytes_out"] + row["bytes_in"])
    hidden = number(row["hidden_share"], ".0%")
    return (
        f"copy overlap, {row['size']} px {row['direction']}, {row['dtype']}: {spilled} s spilled, {kept} s without, "
        f"{copies} s for {moved} of copies alone: {hidden} of the copying hidden"
    )


def write_json(report: dict[str, Any], path: Path) -> None:
    """The file appears whole or not at all."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"format": FORMAT, **report}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)
