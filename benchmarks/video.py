"""Time, memory and damage of a clip of Wan 2.1: diffusers and ComfyUI, untiled and with their tiles, beside ours.

`COMFYUI_DIR=<checkout> python benchmarks/video.py [--size 576x320] [--frames 73] [--width 32] [--picture strip.png]`

Random weights, float32. The latent is a still: its frames are all the same, so that whatever flickers is of the method.
Every method decodes once to be timed after a warm-up of one frame, and once to be metered. Printed are seconds, the
peak of live tensors, the largest difference from diffusers' untiled frames as a part of their range, and flicker: the
mean change from frame to frame, of 255, where the untiled frames change by less than half a step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from clips import full_width, metered, seconds
from exact_vae import load_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import to_layout
from others import comfyui_folder, comfyui_nodes, import_comfyui
from torch import Tensor

FRAME = 1 / 255
GAIN = 4
"""Of differences in the picture: a quarter of the range is white."""


class Method(NamedTuple):
    """A way to decode the clip into (F, H, W, 3), 0..1."""

    name: str
    decode: Callable[[Tensor], Tensor]


def as_frames(clip: Tensor) -> Tensor:
    """diffusers' (1, 3, F, H, W), -1..1."""
    return ((clip[0] + 1) / 2).clamp(0, 1).permute(1, 2, 3, 0)


def methods(theirs: Any, budget: int) -> Iterator[Method]:
    """All of them; those of ComfyUI where there is a checkout."""
    state = to_layout(load_model(theirs.state_dict()).model, "wan")
    vae = load_vae(state, device="cpu", dtype="float32")

    def tiled(z: Tensor) -> Tensor:
        theirs.enable_tiling()
        try:
            return as_frames(theirs.decode(z).sample)
        finally:
            theirs.disable_tiling()

    yield Method("diffusers, untiled", lambda z: as_frames(theirs.decode(z).sample))
    yield Method("diffusers, its tiles", tiled)
    if comfyui_folder():
        core = import_comfyui(torch.device("cpu")).VAE(sd=dict(state), device=torch.device("cpu"), dtype=torch.float32)
        nodes = comfyui_nodes()
        yield Method("ComfyUI, untiled", lambda z: nodes.VAEDecode().decode(core, {"samples": z})[0])
        told = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}
        yield Method(
            "ComfyUI, its tiled node", lambda z: nodes.VAEDecodeTiled().decode(core, {"samples": z}, **told)[0]
        )
    yield Method("ExactVAE", lambda z: vae.decode(z)[0])
    yield Method(f"ExactVAE, {budget / 2**20:.0f} MiB", lambda z: vae.decode(z, memory=budget)[0])


def flicker(frames: Tensor, untiled: Tensor) -> float:
    """Of 255."""
    still = untiled.diff(dim=0).abs() < FRAME / 2
    return float(frames.diff(dim=0).abs()[still].mean()) * 255


def write_strip(path: Path, rows: list[tuple[str, Tensor]], untiled: Tensor) -> None:
    """Ten frames around the one that is most off; of each method what it is off."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    worst = max(int((frames - untiled).abs().mean((1, 2, 3)).argmax()) for _, frames in rows)
    first = min(max(0, worst - 5), len(untiled) - 10)
    shown = range(first, first + 10)
    figure, axes = pyplot.subplots(len(rows) + 1, 10, figsize=(15, 0.95 * (len(rows) + 1)), squeeze=False)
    for number, (name, frames) in enumerate([("untiled", untiled), *rows]):
        for place, frame in zip(axes[number], shown, strict=True):
            picture = frames[frame] if number == 0 else ((frames[frame] - untiled[frame]).abs() * GAIN).clamp(0, 1)
            place.imshow(picture.numpy(), interpolation="nearest")
            place.set_xticks([])
            place.set_yticks([])
            if number == 0:
                place.set_title(f"frame {frame}", fontsize=8)
        axes[number][0].set_ylabel(name.replace(", ", "\n"), fontsize=7, rotation=0, ha="right", va="center")
    figure.suptitle(f"a still latent: untiled frames, and {GAIN} times what each method is off", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """One row a method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="576x320")
    parser.add_argument("--frames", type=int, default=73)
    parser.add_argument("--width", type=int, default=32, help="of the first level; the published one has 96")
    parser.add_argument("--budget", type=int, default=64, help="MiB of the last row")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    theirs = full_width(options.width)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(1, 16, 1, height // 8, width // 8, generator=generator)
    clip = z.expand(-1, -1, (options.frames - 1) // 4 + 1, -1, -1).contiguous()
    print(f"| {options.size} x {options.frames}, float32 | seconds | live tensors | largest difference | flicker |")
    print("| --- | --- | --- | --- | --- |")
    untiled, rows = None, []
    with torch.inference_mode():
        for name, decode in methods(theirs, options.budget * 2**20):
            found: list[Tensor] = []
            decode(z)
            elapsed = seconds(lambda decode=decode, found=found: found.append(decode(clip)) or found[0])
            frames = found.pop()
            untiled = frames if untiled is None else untiled
            off = float((frames - untiled).abs().max() / (untiled.max() - untiled.min()))
            most = metered(lambda decode=decode: decode(clip))[2] / 2**20
            print(
                f"| {name} | {elapsed:.1f} | {most:.0f} MiB | {off:.1e} | {flicker(frames, untiled):.3f} |", flush=True
            )
            if "untiled" not in name:
                rows.append((name, frames))
    assert untiled is not None
    if options.picture:
        write_strip(
            options.picture,
            [row for row in rows if row[0] != "diffusers, untiled" and "untiled" not in row[0]],
            untiled,
        )


if __name__ == "__main__":
    main()
