"""How well VAEs reconstruct photographs: several of them on identical crops, one value per image and metric."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..files.images import SUFFIXES, middle, read_photo
from .learned import frechet_distance, load_inception, load_lpips
from .metrics import LEAST_SIDE_MS, ms_ssim, psnr, round_to_8_bits, ssim

LEAST_CROP = 32
"""Sides of crops are multiples of this many pixels, which every VAE's latent cells divide."""
SHEET_ROWS = 8
TITLES = {"psnr": "PSNR dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "lpips": "LPIPS", "rfid": "rFID"}


class Reconstructing(Protocol):
    """What is asked of a VAE here."""

    @property
    def first_stage_model(self) -> nn.Module: ...

    def encode(self, pixels: Tensor, /) -> Tensor: ...

    def decode(self, latents: Tensor, /) -> Tensor: ...


@dataclass
class Scores:
    """Of one VAE: metric -> image -> value, and one figure over all images."""

    vae: str
    values: dict[str, dict[str, float]] = field(default_factory=dict)
    rfid: float | None = None

    def summary(self, metric: str) -> tuple[float, float] | None:
        """Mean and standard deviation over the images; None where no image has the metric."""
        values = list(self.values.get(metric, {}).values())
        if not values:
            return None
        return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


@dataclass
class Evaluation:
    """Of all VAEs on the same crops."""

    crop: int
    images: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Image -> why it could not be used."""
    absent: dict[str, str] = field(default_factory=dict)
    """Metric -> why it could not be computed."""
    scores: list[Scores] = field(default_factory=list)
    samples: list[tuple[str, Tensor, list[Tensor]]] = field(default_factory=list)
    """For a contact sheet: image, crop, and its reconstruction by each VAE; (3, h, w) in -1..1, 8 bits."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        vaes: list[dict[str, Any]] = []
        for scores in self.scores:
            found = {metric: scores.summary(metric) for metric in TITLES}
            facts = {
                metric: two and {"mean": two[0], "deviation": two[1], "values": scores.values[metric]}
                for metric, two in found.items()
            }
            vaes.append({"vae": scores.vae, **facts, "rfid": scores.rfid})
        told = {"crop": self.crop, "images": len(self.images), "skipped": self.skipped, "absent": self.absent}
        return told | {"vaes": vaes}

    def table(self) -> str:
        """One row for each VAE: mean and standard deviation; then what is absent and why."""
        rows = [["VAE", "images", *TITLES.values()]]
        for scores in self.scores:
            cells = [self._cell(scores, metric) for metric in TITLES]
            rows.append([scores.vae, str(len(self.images)), *cells])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        crops = f"Centre crops of up to {self.crop} pixels, rounded to 8 bits"
        lines.append(f"{crops}; mean ± standard deviation over the images.")
        lines += [f"{TITLES[metric]} is absent: {reason}." for metric, reason in self.absent.items()]
        lines += [f"{len(self.skipped)} of {len(self.images) + len(self.skipped)} images skipped."] * bool(self.skipped)
        return "\n".join(lines)

    def _cell(self, scores: Scores, metric: str) -> str:
        if metric == "rfid":
            return "-" if scores.rfid is None else f"{scores.rfid:.3f}"
        found = scores.summary(metric)
        digits = 2 if metric == "psnr" else 4
        return f"{found[0]:.{digits}f} ± {found[1]:.{digits}f}" if found else "-"


def find_photos(folder: Path, crop: int) -> list[Path]:
    """The pictures of a folder, sorted by name; InputError where there is none, or for a crop that is too small."""
    if crop < LEAST_CROP:
        raise InputError(f"--crop: expected at least {LEAST_CROP} pixels, got {crop}: take 512")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise InputError(f"--images: expected a folder of pictures, got {folder}: name one that holds JPEG or PNG")
    return paths


def evaluate(
    vaes: Sequence[tuple[str, Reconstructing]],
    folder: Path,
    *,
    crop: int = 512,
    keep_samples: bool = False,
    progress: Callable[[float], None] = lambda fraction: None,
) -> Evaluation:
    """Reconstruct the centre crop of every image of a folder with every VAE.

    Args:    vaes: with the names that they shall have in the result.
             crop: side in pixels; sides are cut down to multiples of 32.
             keep_samples: keep the first images and their reconstructions for a contact sheet.
    Raises:  InputError as `find_photos`, for half a VAE, or when no image could be used.
    """
    paths = find_photos(folder, crop)
    for name, vae in vaes:
        parts = {part for part, _ in vae.first_stage_model.named_children()}
        if len(parts & {"encoder", "decoder"}) == 1:
            raise InputError(f'{name}: expected a whole VAE, got half of one: name both with --vae, or joined by "+"')
        sides = [getattr(vae, f"{way}scale_ratio", None) for way in ("down", "up")]
        if sides[0] != sides[1]:
            raise InputError(
                f"{name}: expected a decoder that gives images back in their size, got one of {sides[1]} pixels a cell "
                f"for {sides[0]} of the encoder: leave it out"
            )
    result = Evaluation(crop, scores=[Scores(name) for name, _ in vaes])
    judge = _Judge(result)
    for number, path in enumerate(paths):
        try:
            x = _read_crop(path, crop)
        except ValueError as error:
            result.skipped[path.name] = str(error)
        else:
            result.images.append(path.name)
            outputs = [
                judge.add(path.name, x, reconstruct(vae, x), scores)
                for (_, vae), scores in zip(vaes, result.scores, strict=True)
            ]
            if keep_samples and len(result.samples) < SHEET_ROWS:
                result.samples.append((path.name, x[0], [y[0].float() for y in outputs]))
        progress((number + 1) / len(paths))
    if not result.images:
        reason = next(iter(result.skipped.values()))
        raise InputError(f"--images: expected readable pictures, got none of {len(paths)} ({reason}): check {folder}")
    judge.finish()
    return result


def reconstruct(vae: Reconstructing, x: Tensor) -> Tensor:
    """(B, 3, H, W) in -1..1 through encoder (posterior mean) and decoder, on the CPU."""
    images = vae.decode(vae.encode((x.movedim(1, -1) + 1) / 2))
    images = images.reshape(-1, *images.shape[-3:])  # a VAE of clips gives pictures an axis of frames
    return images.cpu().movedim(-1, 1) * 2 - 1


def _read_crop(path: Path, crop: int) -> Tensor:
    """(1, 3, h, w) in -1..1; ValueError for what cannot be used."""
    photo = read_photo(path)
    if min(photo.shape[1:]) < LEAST_CROP:
        raise ValueError(f"expected {LEAST_CROP} pixels a side, got {photo.shape[2]}x{photo.shape[1]}")
    return middle(photo, crop, LEAST_CROP)[None]


class _Judge:
    """The metrics that there are here, and the features of all images so far."""

    def __init__(self, result: Evaluation) -> None:
        self.result = result
        self.lpips, reason = load_lpips()
        self.inception, features_reason = load_inception()
        absent = {"lpips": reason, "rfid": features_reason}
        result.absent |= {metric: why for metric, why in absent.items() if why}
        self.features: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def add(self, image: str, x: Tensor, y: Tensor, scores: Scores) -> Tensor:
        """Measure one reconstruction; it comes back rounded to 8 bits."""
        x, y = round_to_8_bits(x), round_to_8_bits(y)
        large = min(x.shape[2:]) >= LEAST_SIDE_MS
        metrics = {"psnr": psnr, "ssim": ssim, "ms_ssim": ms_ssim if large else None, "lpips": self.lpips}
        for name, metric in metrics.items():
            if metric is None:
                continue
            value = float(metric(x, y))
            if not math.isfinite(value):
                raise InputError(f"{scores.vae}: expected finite pictures, got NaN for {image}: try --dtype float32")
            scores.values.setdefault(name, {})[image] = value
        if self.inception is not None:
            self.features.setdefault(id(scores), []).append((self.inception(x), self.inception(y)))
        return y

    def finish(self) -> None:
        """What needs all images, and why a column is empty."""
        if not any("ms_ssim" in scores.values for scores in self.result.scores):
            self.result.absent["ms_ssim"] = f"its five scales take crops of {LEAST_SIDE_MS} pixels and more"
        if self.inception is not None and len(self.result.images) < 2:
            self.result.absent["rfid"] = "it takes two images or more"
        elif self.inception is not None:
            for scores in self.result.scores:
                x, y = (torch.cat(side) for side in zip(*self.features[id(scores)], strict=True))
                scores.rfid = frechet_distance(x, y)
