"""The main job on a real photograph: `python3 run.py demo`, or `python benchmarks/demo.py [--image PATH]`.

Encodes and decodes through the node classes, prints a table, writes the reconstruction and one comparison figure.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from exact_vae import NODE_CLASS_MAPPINGS
from exact_vae.model_management import get_torch_device
from exact_vae.vae_model.errors.bytesize import format_bytes
from exact_vae.vae_model.evaluation.metrics import decibels
from exact_vae.vae_model.files.atomic import require_writable
from exact_vae.vae_model.files.images import read_image, write_image
from meter import LiveTensorMeter
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, OVERLAP, STRIP, REPEATS = 256, 64, 64, 3
EXAGGERATION = 8


def _photo(path: Path | None) -> tuple[Tensor, str]:
    """The user's picture, or NASA's portrait of Eileen Collins (public domain) from scikit-image: (1, H, W, 3)."""
    if path is not None:
        pixels, notes = read_image(path)
        return pixels, "; ".join([str(path), *notes])
    from skimage import data  # pyright: ignore

    return torch.from_numpy(data.astronaut()).float()[None] / 255, "astronaut (NASA, public domain)"  # pyright: ignore


def _measure(run: Callable[[], object], device: torch.device) -> tuple[Any, float, int]:
    """(result, median seconds after one warm-up, peak bytes of tensors made by one run)."""
    if device.type == "cuda":
        result = run()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        run()
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveTensorMeter(device.type) as meter:
            result = run()
        peak = meter.peak_bytes
    seconds: list[float] = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return result, statistics.median(seconds), peak


def _difference(image: Tensor, reference: Tensor) -> str:
    worst = float((image - reference).abs().max())
    return "none" if worst == 0 else f"max {worst:.1g} of 1, {float(decibels(image, reference, span=1)):.0f} dB"


def _figure(panels: list[tuple[str, Tensor]], path: Path) -> None:
    """Pictures side by side, each under its title."""
    height, width = panels[0][1].shape[:2]
    band = 36
    sheet = Image.new("RGB", ((width + 8) * len(panels) - 8, height + band), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=18)
    for number, (title, image) in enumerate(panels):
        bytes_ = (image.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        left = number * (width + 8)
        sheet.paste(Image.fromarray(bytes_), (left, band))
        pen.text((left + 4, 8), title, fill="black", font=font)
    sheet.save(path)


def run_demo(image: Path | None, output: Path) -> None:
    """The whole demo; everything it claims it measures here."""
    output.mkdir(parents=True, exist_ok=True)
    require_writable(output / "reconstruction.png")
    pixels, name = _photo(image)
    make: dict[str, Any] = {key: node() for key, node in NODE_CLASS_MAPPINGS.items()}
    (vae,) = make["ExactVAELoader"].load_vae("bundled")
    device = get_torch_device()
    print(f"Photo: {name}, {pixels.shape[2]} x {pixels.shape[1]} pixels. Device: {device}, {vae.vae_dtype}.")

    latent, encode_seconds, encode_peak = _measure(
        lambda: make["ExactVAEEncode"].encode(pixels, vae)["result"][0], device
    )
    z = latent["samples"]
    rows: list[tuple[str, float, int, str]] = [("encode, exact", encode_seconds, encode_peak, "")]
    untiled, seconds, peak = _measure(lambda: vae.decode(z, method="untiled"), device)
    rows.append(("decode, untiled", seconds, peak, "the reference"))
    exact, seconds, peak = _measure(lambda: make["ExactVAEDecode"].decode(latent, vae)["result"][0], device)
    rows.append(("decode, exact", seconds, peak, _difference(exact, untiled)))
    small, seconds, peak = _measure(lambda: make["ExactVAEDecodeTiled"].decode(latent, vae, STRIP)["result"][0], device)
    rows.append((f"decode, exact, strips of {STRIP}", seconds, peak, _difference(small, untiled)))
    limit = vae.last_plan.peak_bytes // 2
    small, seconds, peak = _measure(lambda: vae.decode(z, memory=limit), device)
    rows.append(("decode, exact, half of that", seconds, peak, _difference(small, untiled)))
    blend, seconds, peak = _measure(
        lambda: make["ExactVAEDecodeTiled"].decode(latent, vae, TILE, OVERLAP, method="blend")["result"][0], device
    )
    rows.append((f"decode, blended {TILE}-px tiles", seconds, peak, _difference(blend, untiled)))

    kind = "CUDA peak" if device.type == "cuda" else "live tensors"
    print(f"\n{'method':30} {'seconds':>8} {'memory above weights':>21}  difference from untiled")
    for method, seconds, peak, difference in rows:
        print(f"{method:30} {seconds:8.2f} {format_bytes(peak):>21}  {difference}")
    height, width = exact.shape[1:3]
    top, left = (pixels.shape[1] - height) // 2, (pixels.shape[2] - width) // 2
    original = pixels[0, top : top + height, left : left + width]
    print(f"\nMemory: {kind}, peak of one run. Seconds: median of {REPEATS} after a warm-up.")
    print("Exact differs from untiled by the rounding of float32 sums in another order, far below one 8-bit step.")
    print(f"Photo against its reconstruction: {float(decibels(exact.cpu(), original[None], span=1)):.2f} dB.")

    write_image(exact[0], output / "reconstruction.png")
    change = (blend[0] - untiled[0]).abs().cpu() * EXAGGERATION
    panels = [("photo", original), ("exact", exact[0].cpu()), ("blended tiles (approximate)", blend[0].cpu())]
    _figure([*panels, (f"what the tiles changed, x{EXAGGERATION}", change)], output / "comparison.png")
    print(f"Written: {output / 'reconstruction.png'}, {output / 'comparison.png'}")
    program = Path(sys.executable).with_name("exact-vae")
    print("\nNext, with a picture of yours: python3 run.py demo --image my.jpg")
    print(f"or files in and out: {program} encode my.jpg; {program} decode my.safetensors -o again.png")
    print("or in ComfyUI: copy this folder into custom_nodes, restart, put Make VAE Exact behind any VAE.")


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="run.py demo", description="Encode and decode one photograph.")
    parser.add_argument("--image", type=Path, default=None, help="your own picture; default: one from scikit-image")
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for the pictures")
    options = parser.parse_args()
    try:
        run_demo(options.image, options.output)
    except (ValueError, RuntimeError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
