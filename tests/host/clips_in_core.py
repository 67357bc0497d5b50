"""Clips of Wan 2.1 through the core's nodes and ours, plain and behind Make VAE Exact; random weights, full width.

See `in_core.py`.
"""

# ruff: noqa: I001
import json
import time

from in_core import exact_vae, fill  # first of all: it makes this process the host

import nodes
import torch
from vaes_of_core import WAN, compared, from_markers

HEIGHT, WIDTH = 8, 10
"""Cells of latents: the core's nodes cut tiles of 64 pixels out of these."""


def timed(call):
    """(images, seconds, bytes of live tensors at the peak)."""
    from exact_vae.benchmarks.meter import LiveTensorMeter

    started = time.perf_counter()
    with torch.inference_mode(), LiveTensorMeter() as meter:
        images = call()
    return images, time.perf_counter() - started, meter.peak_bytes


def ways(plain, made, samples):
    """(name, call) of everything that decodes a clip."""
    ours = exact_vae.NODE_CLASS_MAPPINGS
    tiled = {"tile_size": 64, "overlap": 16, "temporal_size": 8, "temporal_overlap": 4}
    yield "core, plain", lambda: nodes.VAEDecode().decode(plain, samples)[0]
    yield "core, tiled", lambda: nodes.VAEDecodeTiled().decode(plain, samples, **tiled)[0]
    yield "core, made exact", lambda: nodes.VAEDecode().decode(made, samples)[0]
    yield "core, tiled, made exact", lambda: nodes.VAEDecodeTiled().decode(made, samples, **tiled)[0]
    (less,) = ours["ExactVAEApply"]().apply(plain, memory=40 / 1024)
    yield "core, within 40 MiB", lambda: nodes.VAEDecode().decode(less, samples)[0]
    yield "ours", lambda: ours["ExactVAEDecode"]().decode(samples, plain)["result"][0]
    for size in (8, 4096):
        told = {**tiled, "temporal_size": size}
        yield (
            f"ours, tiled, {size}",
            lambda told=told: ours["ExactVAEDecodeTiled"]().decode(samples, plain, **told)["result"][0],
        )


def main():
    """5 and 17 frames."""
    plain, told = from_markers(WAN), {}
    fill(plain.first_stage_model)
    (made,) = exact_vae.NODE_CLASS_MAPPINGS["ExactVAEApply"]().apply(plain)
    for latents in (2, 5):
        generator = torch.Generator().manual_seed(latents)
        samples = {"samples": torch.randn(1, 16, latents, HEIGHT, WIDTH, generator=generator)}
        expected, rows = None, {}
        for name, call in ways(plain, made, samples):
            images, seconds, peak = timed(call)
            expected = images if expected is None else expected
            off, report = compared(images, expected), getattr(made, "last_report", None)
            rows[name] = {"off": off, "seconds": seconds, "peak": peak, "shape": list(images.shape)}
            rows[name]["line"] = report.line if "made exact" in name else None
        told[4 * latents - 3] = rows
    print(json.dumps(told))


main()
