"""PSNR of a VAE on photographs: `python -m exact_vae.vae_model.training.judge FILE [FILE2] --val DIR`.

512-pixel centre crops, posterior mean, both pictures rounded to 8 bits, mean of the per-photograph values.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..bundled import BUNDLED_FILE
from ..load import LoadedModel, load_model
from ..tiny import AutoencoderTiny
from .photos import centre_crop, psnr, read_photos


@torch.inference_mode()
def reconstruct(loaded: LoadedModel, x: Tensor) -> Tensor:
    """Images (B, 3, H, W) in -1..1 through encoder and decoder."""
    model = loaded.model
    if isinstance(model, AutoencoderTiny):
        return model.decode(model.encode(x)[0])[0]
    return model.decode(model.encode(x))  # pyright: ignore[reportCallIssue]


def judge(loaded: LoadedModel, photos: Sequence[Tensor], size: int = 512) -> list[float]:
    """PSNR in dB of the centre crop of each (3, H, W) uint8 photograph."""
    crops = [centre_crop(photo, size) for photo in photos]
    return [psnr(x, reconstruct(loaded, x)) for x in crops]


def main() -> None:
    """Parse the command line and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "vae", nargs="*", default=[str(BUNDLED_FILE)], help="a VAE file or its two halves; default: the bundled"
    )
    parser.add_argument("--val", type=Path, required=True, help="folder of photographs")
    options = parser.parse_args()
    loaded = load_model(options.vae, dtype=torch.float32)
    scores = judge(loaded, read_photos(options.val))
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    print(
        f"PSNR {statistics.mean(scores):.2f} dB, deviation {spread:.2f}, "
        f"{min(scores):.2f} to {max(scores):.2f}, {len(scores)} photographs"
    )


if __name__ == "__main__":
    main()
