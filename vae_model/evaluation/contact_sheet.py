"""A contact sheet: crops, their reconstructions, and what the reconstructions changed, in one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..files.atomic import atomic_path, require_writable
from .evaluate import Evaluation

BOOST = 8
"""Differences are shown this many times as large, black where there is none."""
CELL = 256
"""Larger crops are shrunk to this side."""
GAP, BAND = 6, 26


def require_sheet_name(path: Path) -> None:
    """ValueError, before any work, for a sheet that could not be written."""
    if path.suffix.lower() != ".png":
        raise ValueError(f"--sheet: expected a name ending in .png, got {str(path)!r}: change the ending")
    require_writable(path)


def write_sheet(evaluation: Evaluation, path: Path) -> None:
    """A row for each of the first images: input, then reconstruction and difference of each VAE."""
    titles = ["input"]
    for scores in evaluation.scores:
        titles += [Path(scores.vae).name, f"difference x{BOOST}"]
    rows = [
        [_cell(x), *(cell for y in outputs for cell in (_cell(y), _cell((x - y).abs() * BOOST - 1)))]
        for _, x, outputs in evaluation.samples
    ]
    side = max(max(cell.size) for row in rows for cell in row)
    width, height = len(titles) * (side + GAP) - GAP, len(rows) * (side + GAP) - GAP
    sheet = Image.new("RGB", (width, height + BAND), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=14)
    for column, title in enumerate(titles):
        left = column * (side + GAP)
        pen.text((left + 4, 5), _fitting(title, side, pen, font), fill="black", font=font)
        for number, row in enumerate(rows):
            sheet.paste(row[column], (left, BAND + number * (side + GAP)))
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _cell(x: Tensor) -> Image.Image:
    """(3, h, w) in -1..1 as a picture of at most CELL pixels a side."""
    steps = ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    picture = Image.fromarray(np.ascontiguousarray(steps.movedim(0, -1).numpy()))
    picture.thumbnail((CELL, CELL), Image.Resampling.BOX)
    return picture


def _fitting(
    text: str, width: int, pen: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> str:
    """The beginning of the text, as much as fits."""
    while len(text) > 4 and pen.textlength(text, font=font) > width - 8:
        text = text[:-4] + "..."
    return text
