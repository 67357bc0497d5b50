"""The two plots, drawn from the report alone: `python benchmarks/plots.py benchmarks/results/bench_cpu.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exact_vae.vae_model.errors.bytesize import format_bytes
from labels import Point, place_labels, stack_labels

OURS, OTHERS = "#0b6e99", "#5a5a5a"
COLOURS = {"resident": "#0b6e99", "recompute": "#2a9d6f", "spill": "#c9821a", "smallest": "#b0413e"}
KINDS = {"ExactVAE resident": "resident", "ExactVAE recompute": "recompute", "ExactVAE spilled": "spill"}
INCHES = (8.3, 5.0)
DPI = 150
FONT = 9.5
APPROXIMATE = " tiled"
"""How the names of candidates end whose result is approximate; they get hollow points."""


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """Both plots as PNG files, each only where there is something to show.

    Shown is the first direction and dtype of the settings, and for memory against time the largest measured size.
    """
    direction, dtype = content["settings"]["directions"][0], content["settings"]["dtypes"][0]
    rows = [row for row in content["results"] if row["direction"] == direction and row["dtype"] == dtype]
    rows = [row for row in rows if row["peak_bytes"] and row["median_seconds"]]
    predictions = [p for p in content["predictions"] if p["direction"] == direction and p["dtype"] == dtype]
    title = f"{direction.capitalize()}, {dtype}, {_device_name(content['machine'])}"
    device = content["machine"]["device"]
    written: list[Path] = []
    if rows:
        written.append(folder / f"bench_{device}_memory_time.png")
        size = max(row["size"] for row in rows)
        draw_memory_time([row for row in rows if row["size"] == size], title, written[-1])
    if rows or predictions:
        written.append(folder / f"bench_{device}_size_memory.png")
        draw_size_memory(rows, predictions, title, written[-1])
    return written


def draw_memory_time(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """A point for every candidate: seconds across, peak bytes up. Lower left is better."""
    figure, axes = _new_figure(f"{title}, {rows[0]['size']} x {rows[0]['size']} pixels")
    points = [Point(r["median_seconds"], r["peak_bytes"], _full_name(r), _colour(r["name"])) for r in rows]
    for point in points:
        _mark(axes, point)
    axes.set_xscale("log")
    axes.set_yscale("log")
    _set_limits(axes.set_xlim, [point.x for point in points], least=3.0)
    _set_limits(axes.set_ylim, [point.y for point in points], least=3.0)
    _tick_seconds(axes.xaxis)
    _tick_bytes(axes.yaxis)
    axes.set_xlabel(f"seconds (median)\n{_explain_hollow(rows)}")
    axes.set_ylabel("peak memory above the weights")
    place_labels(axes, points, fontsize=FONT)
    figure.savefig(path)


def draw_size_memory(
    rows: Sequence[dict[str, Any]], predictions: Sequence[dict[str, Any]], title: str, path: Path
) -> None:
    """Peak bytes over the side of the image: predicted for our schedules as lines, measured as points."""
    figure, axes = _new_figure(title)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    first = min((row["size"] for row in rows), default=0)  # Names stand left of the points; no line may run there.
    predictions = [p for p in predictions if p["size"] >= first]
    lines = {kind: sorted((p["size"], p["peak_bytes"]) for p in predictions if p["kind"] == kind) for kind in COLOURS}
    for kind, line in lines.items():
        style = "--" if kind == "spill" else "-"  # On a GPU it may lie upon another.
        axes.plot([x for x, _ in line], [y for _, y in line], style, color=COLOURS[kind], lw=1.6, zorder=2)
    points = [point for name in dict.fromkeys(row["name"] for row in rows) for point in _measured(axes, rows, name)]
    sides = sorted({row["size"] for row in rows} | {p["size"] for p in predictions})
    axes.set_xlim(sides[0] / 5, sides[-1] * (3 if predictions else 2))
    axes.set_xticks(sides, [str(side) for side in sides])
    axes.minorticks_off()
    _tick_bytes(axes.yaxis)
    legend = "lines: predicted for ExactVAE's plans; points: measured; "
    axes.set_xlabel(f"side of a square image, pixels\n{legend}{_explain_hollow(rows)}")
    axes.set_ylabel("peak memory above the weights, result included")
    _name_lines(axes, lines)
    stack_labels(axes, points, fontsize=FONT)
    figure.savefig(path)


def _measured(axes: Any, rows: Sequence[dict[str, Any]], name: str) -> list[Point]:
    """Mark one candidate at every size; the point to name, none for ours, which lie on the line of their plan."""
    if name.startswith("ExactVAE in "):
        return []
    colour = COLOURS[KINDS[name]] if name in KINDS else _colour(name)
    points = sorted(Point(r["size"], r["peak_bytes"], name, colour) for r in rows if r["name"] == name)
    if name not in KINDS:
        axes.plot([p.x for p in points], [p.y for p in points], color=colour, lw=0.8, ls=":", zorder=1)
    for point in points:
        _mark(axes, point)
    return [] if name in KINDS else points[:1]


def _name_lines(axes: Any, lines: dict[str, list[tuple[float, float]]]) -> None:
    """At their right ends; lines that end together share a text."""
    ends = sorted(((line[-1], kind) for kind, line in lines.items() if line), key=lambda end: end[0][1])
    while ends:
        (x, y), _ = ends[0]
        together = [kind for (_, other), kind in ends if other < 1.3 * y]
        ends = ends[len(together) :]
        offset = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "fontsize": FONT}
        axes.annotate(",\n".join(together), (x, y), color=COLOURS[together[0]], **offset)


def _new_figure(title: str) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)  # Draws without any screen.
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=FONT + 1, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=FONT)
    axes.xaxis.label.set_size(FONT)
    axes.yaxis.label.set_size(FONT)
    axes.grid(visible=True, color="#e6e6e6", lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _explain_hollow(rows: Sequence[dict[str, Any]]) -> str:
    return "hollow: approximate (tiles)" if any(row["name"].endswith(APPROXIMATE) for row in rows) else ""


def _full_name(row: dict[str, Any]) -> str:
    """With the host memory it takes besides, where it takes any."""
    host_bytes = row["details"].get("host_peak_bytes")
    return f"{row['name']} (+ {format_bytes(host_bytes)} host)" if host_bytes else row["name"]


def _colour(name: str) -> str:
    return OURS if name.startswith("ExactVAE") else OTHERS


def _mark(axes: Any, point: Point) -> None:
    face = "white" if point.name.endswith(APPROXIMATE) else point.colour
    axes.plot(point.x, point.y, "o", ms=6.5, mfc=face, mec=point.colour, mew=1.4, zorder=3)


def _set_limits(set_limits: Any, values: Sequence[float], least: float) -> None:
    """Room for names on both sides, and never a range so narrow that equal looks different."""
    low, high = min(values), max(values)
    widen = max(1.35, (least / (high / low)) ** 0.5)
    set_limits(low / widen, high * widen)


def _tick_seconds(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 4, 5, 6, 8), numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _tick_bytes(axis: Any) -> None:
    """Powers of two, as memory is counted."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(2, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: bytes_label(value)))
    axis.set_minor_locator(NullLocator())


def bytes_label(size: float) -> str:
    """A power of two in the largest unit that leaves at least 1: 512 MiB, 2 GiB."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = 0
    while size >= 1024 and power < len(units) - 1:
        size, power = size / 1024, power + 1
    return f"{size:g} {units[power]}"


def _device_name(machine: dict[str, Any]) -> str:
    if "gpu" in machine:
        return machine["gpu"]
    return f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''} of {machine['processor']}"


def main(argv: Sequence[str]) -> int:
    """Draw again from a report that was written before."""
    path = Path(argv[0])
    for file in draw(json.loads(path.read_text(encoding="utf-8")), path.parent):
        print(file)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
