"""Clips of Wan 2.1 at full width beside diffusers' class: `python benchmarks/clips.py [--size 256x256] [--frames 9]`.

Random weights, float32, runs in turn. Prints seconds, ratios, and the peak of live tensors of one run of each; with
`--rounds 0` that run is timed, too, after a frame alone as warm-up. Needs diffusers.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from exact_vae import load_vae
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import to_layout
from torch import Tensor


def full_width(width: int = 96) -> Any:
    """diffusers' model, activations of about 1. width: of the first level."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    model: Any = AutoencoderKLWan(base_dim=width).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and not name.endswith("gamma"):
            weight.data = torch.randn(weight.shape) / weight[0].numel() ** 0.5
    return model


def seconds(call: Callable[[], Tensor]) -> float:
    """Of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def metered(call: Callable[[], Tensor]) -> tuple[Tensor, float, int]:
    """The result, seconds, and bytes of live tensors, the result among them."""
    with LiveTensorMeter() as meter:
        started = time.perf_counter()
        result = call()
        elapsed = time.perf_counter() - started
    return result, elapsed, meter.peak_bytes


def main() -> None:
    """Decode and encode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directions", nargs="+", default=["decode", "encode"])
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    theirs = full_width()
    vae = load_vae(to_layout(load_model(theirs.state_dict()).model, "wan"), device="cpu", dtype="float32")
    z = torch.randn(1, 16, (options.frames - 1) // 4 + 1, height // 8, width // 8)
    pixels = torch.rand(1, options.frames, height, width, 3)
    clip = pixels.permute(0, 4, 1, 2, 3) * 2 - 1
    pairs: dict[str, tuple[Callable[[int | None], Tensor], Callable[[int | None], Tensor]]] = {
        "decode": (lambda n: vae.decode(z[:, :, :n]), lambda n: theirs.decode(z[:, :, :n]).sample),
        "encode": (lambda n: vae.encode(pixels[:, :n]), lambda n: theirs.encode(clip[:, :, :n]).latent_dist.mode()),
    }
    for name in options.directions:
        ours, other = ((lambda n=None, call=call: call(n)) for call in pairs[name])
        with torch.inference_mode():
            for call in (ours, other):
                call() if options.rounds else call(1)
            times = [(seconds(ours), seconds(other)) for _ in range(options.rounds)]
            (made, *once), (expected, *again) = metered(ours), metered(other)
            mine, own = (statistics.median(column) for column in zip(*(times or [(once[0], again[0])]), strict=True))
            peaks = once[1], again[1]
            if name == "decode":
                expected = ((expected + 1) / 2).clamp(0, 1).permute(0, 2, 3, 4, 1)
            off = float((made - expected).abs().max() / (expected.max() - expected.min()))
        print(
            f"{name} {options.size} x {options.frames}: {mine:.1f} s of {own:.1f} s, {mine / own:.2f}; live tensors "
            f"{peaks[0] / 2**20:.0f} MiB of {peaks[1] / 2**20:.0f} MiB, {peaks[0] / peaks[1]:.2f}; "
            f"off {off:.1e} of the range"
        )


if __name__ == "__main__":
    main()
