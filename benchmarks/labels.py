"""Names beside the points of a plot, placed so that none covers another name or point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

FAR_POINTS = 16
"""A name this far from its point, in typographic points, gets a line to it."""
LINE = {"arrowstyle": "-", "color": "#999999", "lw": 0.6, "shrinkA": 0, "shrinkB": 3}


class Point(NamedTuple):
    """In data coordinates, with its name."""

    x: float
    y: float
    name: str
    colour: str


def place_labels(axes: Any, points: Sequence[Point], *, fontsize: float) -> None:
    """Write every name at the nearest place around its point that is free and inside the axes."""
    figure = axes.figure
    figure.canvas.draw()
    renderer, inside = figure.canvas.get_renderer(), axes.get_window_extent()
    taken: list[Any] = [_box_around(axes, point, 4 * figure.dpi / 72) for point in points]
    for point in points:
        boxes = {place: _box_at(axes, renderer, point, place, fontsize) for place in _places()}

        def cost(place: tuple[float, float], boxes: dict[Any, Any] = boxes) -> float:
            box = boxes[place]
            return place[0] + 100 * sum(box.overlaps(other) for other in taken) + 1000 * _outside(box, inside)

        best = min(boxes, key=cost)
        taken.append(boxes[best])
        _annotate(axes, point, *best, fontsize, line=best[0] >= FAR_POINTS)


def stack_labels(axes: Any, points: Sequence[Point], *, fontsize: float) -> None:
    """Write the names in a column left of the leftmost point, in the order of their points, a line to each."""
    axes.figure.canvas.draw()
    pixels = axes.figure.dpi / 72
    points = sorted(points, key=lambda point: point.y)
    places = [axes.transData.transform((point.x, point.y)) for point in points]
    column = min((x for x, _ in places), default=0.0) - FAR_POINTS * pixels
    heights = spread([y for _, y in places], 1.4 * fontsize * pixels)
    for point, height in zip(points, heights, strict=True):
        note = axes.annotate(
            point.name,
            (point.x, point.y),
            xytext=axes.transData.inverted().transform((column, height)),
            ha="right",
            va="center",
            color=point.colour,
            fontsize=fontsize,
            arrowprops=LINE,
        )
        note.set_in_layout(False)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """Rising values moved apart until neighbours are `gap` apart; those in a heap stay centred on it."""
    heaps: list[list[float]] = []
    for value in values:
        heaps.append([value])
        while len(heaps) > 1 and _top(heaps[-2], gap) + gap > _bottom(heaps[-1], gap):
            heaps[-2:] = [heaps[-2] + heaps[-1]]
    return [_bottom(heap, gap) + number * gap for heap in heaps for number in range(len(heap))]


def _bottom(heap: Sequence[float], gap: float) -> float:
    return sum(heap) / len(heap) - gap * (len(heap) - 1) / 2


def _top(heap: Sequence[float], gap: float) -> float:
    return sum(heap) / len(heap) + gap * (len(heap) - 1) / 2


def _places() -> list[tuple[float, float]]:
    """(distance, angle) around a point, right and left before above and below."""
    angles = (0, 180, 90, 270, 45, 315, 135, 225, 22, 338, 158, 202, 67, 293, 113, 247)
    return [(distance + 0.1 * rank, angle) for distance in (7, 16, 28, 42, 58) for rank, angle in enumerate(angles)]


def _annotate(axes: Any, point: Point, distance: float, angle: float, fontsize: float, *, line: bool = False) -> Any:
    across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    note = axes.annotate(
        point.name,
        (point.x, point.y),
        xytext=(distance * across, distance * up),
        textcoords="offset points",
        ha="left" if across > 0.3 else "right" if across < -0.3 else "center",
        va="bottom" if up > 0.3 else "top" if up < -0.3 else "center",
        color=point.colour,
        fontsize=fontsize,
        arrowprops=LINE if line else None,
    )
    note.set_in_layout(False)  # The axes keep their place, or boxes measured before would be wrong.
    return note


def _box_at(axes: Any, renderer: Any, point: Point, place: tuple[float, float], fontsize: float) -> Any:
    """Where a name would stand."""
    note = _annotate(axes, point, *place, fontsize)
    box = note.get_window_extent(renderer)
    note.remove()
    return box


def _box_around(axes: Any, point: Point, radius: float) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform((point.x, point.y))
    return Bbox([[x - radius, y - radius], [x + radius, y + radius]])


def _outside(box: Any, inside: Any) -> bool:
    return box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1
