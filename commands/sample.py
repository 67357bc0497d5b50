"""`exact-vae sample`: pictures of latents drawn from the prior, as files, as one sheet, or both."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from ..vae_model.vae import VAE

_GAP = 4
_PRIOR = "decode latents of plain noise; they look like pictures only where the KL term was strong"


def add_sample(commands: Any, parents: list[argparse.ArgumentParser]) -> None:
    """The command's own words, beside those of `parents`."""
    sample = commands.add_parser("sample", parents=parents, help=_PRIOR)
    sample.add_argument("-o", "--output", type=Path, help="a folder for sample_SEED.png, or a picture for one alone")
    sample.add_argument("--sheet", type=Path, metavar="FILE.png", help="all of them in one picture")
    sample.add_argument("--vae", action="append", metavar="FILE", help="a VAE file; twice for two halves")
    sample.add_argument("--count", type=int, default=None, help="how many; 4, or 1 where -o names a picture")
    sample.add_argument(
        "--size", default="256x256", metavar="WxH", help="of each in pixels, rounded up to whole cells; 256x256"
    )
    sample.add_argument("--seed", type=int, default=0, help="of the first; the next ones have the next seeds; 0")
    sample.add_argument("--memory", default=None, metavar="AMOUNT", help="limit above the weights, such as 2GiB")
    sample.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    sample.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")


def run_sample(options: argparse.Namespace) -> int:
    """Draw, decode and write; returns the exit code."""
    import torch

    from ..vae_model.files.images import write_image
    from .jobs import open_bar
    from .vae_option import chosen_vae

    alone, count = _settle(options)
    width, height = parse_size(options.size)
    vae = chosen_vae(options)
    cells = _cells(vae, width, height)
    written: list[Path] = []
    kept: list[Tensor] = []
    with open_bar(count, "sample", quiet=options.quiet or options.json, count=True) as bar:
        for seed in range(options.seed, options.seed + count):
            # A latent of normal noise that follows from the seed alone, on every device.
            z = torch.randn(1, vae.latent_channels, *cells, generator=torch.Generator().manual_seed(seed))
            picture = vae.decode(z, memory=options.memory)[0]  # (H, W, C): grey becomes RGB, opacity goes
            picture = picture[..., :3] if picture.shape[-1] >= 3 else picture[..., :1].expand(-1, -1, 3)
            if options.output is not None:
                written.append(options.output if alone else options.output / f"sample_{seed}.png")
                write_image(picture, written[-1])
            if options.sheet is not None:
                kept.append(picture)
            bar.update()
    if options.sheet is not None:
        write_image(tiled(kept), options.sheet)
        written.append(options.sheet)
    if options.json:
        drawn = "x".join(str(cell * vae.upscale_ratio) for cell in reversed(cells))
        told = {"command": "sample", "seed": options.seed, "size": drawn, "outputs": [str(path) for path in written]}
        print(json.dumps(told))
    elif not options.quiet:
        print("\n".join(map(str, written)))
    return 0


def _settle(options: argparse.Namespace) -> tuple[bool, int]:
    """Whether `-o` is the one picture, and how many are drawn; ValueError, before any work, for what cannot be."""
    from ..vae_model.errors.bytesize import parse_bytes
    from ..vae_model.evaluation.contact_sheet import require_sheet_name
    from ..vae_model.files.atomic import require_writable

    if options.output is None and options.sheet is None:
        raise ValueError("sample: expected -o FOLDER or --sheet FILE.png, got neither: say where the pictures go")
    alone = options.output is not None and names_a_picture(options.output)
    count = (1 if alone and options.sheet is None else 4) if options.count is None else options.count
    for name, value, least in (("count", count, 1), ("seed", options.seed, 0)):
        if value < least:
            raise ValueError(f"--{name}: expected at least {least}, got {value}: raise it")
    if alone and count > 1:
        raise ValueError(
            f"-o: expected a folder for {count} samples, got {options.output}: name a folder, say --count 1, "
            "or --sheet for one picture of all"
        )
    parse_size(options.size)
    if options.memory is not None:
        parse_bytes(options.memory)
    if options.sheet is not None:
        require_sheet_name(options.sheet)
    if options.output is not None:
        require_writable(options.output if alone else options.output / "sample.png")
    return alone, count


def names_a_picture(output: Path) -> bool:
    """Whether `-o` is a file's name, not a folder's; ValueError for the name of a file of another kind."""
    from ..vae_model.files.images import require_image_suffix

    if output.is_dir() or not output.suffix[1:2].isalpha():  # run_1.5 is a folder
        return False
    require_image_suffix(output)
    return True


def _cells(vae: VAE, width: int, height: int) -> tuple[int, int]:
    """Rows and columns of the latent, whole cells; what is drawn is told where it is not what was asked for."""
    from ..vae_model.notes import tell

    f = vae.upscale_ratio
    rows, columns = -(-height // f), -(-width // f)
    if (columns * f, rows * f) != (width, height):
        drawn = f"{columns * f}x{rows * f}"
        tell("--size", [f"expected whole cells of {f} pixels, got {width}x{height}: drawing {drawn}"])
    return rows, columns


def parse_size(text: str) -> tuple[int, int]:
    """(width, height) of "512x768"; ValueError else."""
    sides = text.lower().split("x")
    if len(sides) == 2 and all(side.isdecimal() and int(side) > 0 for side in sides):
        return int(sides[0]), int(sides[1])
    raise ValueError(f"--size: expected WxH in pixels, got {text!r}: write for example 512x768")


def tiled(pictures: list[Tensor]) -> Tensor:
    """Pictures (H, W, 3) of one size side by side, white between them, in about as many rows as columns."""
    import torch

    columns = math.isqrt(len(pictures) - 1) + 1
    rows = -(-len(pictures) // columns)
    height, width, _ = pictures[0].shape
    sheet = torch.ones(rows * (height + _GAP) - _GAP, columns * (width + _GAP) - _GAP, 3)
    for number, picture in enumerate(pictures):
        row, column = divmod(number, columns)
        sheet[row * (height + _GAP) :, column * (width + _GAP) :][:height, :width] = picture
    return sheet
