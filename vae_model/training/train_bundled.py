"""Train the bundled VAE: `python -m exact_vae.vae_model.training.train_bundled --photos DIR --val DIR --out DIR`.

L1 and squared error, a light KL, AdamW with a cosine schedule, bfloat16 autocast, an exponential moving average of the
weights, and half-precision weights at the end. One seed fixes the whole run on one machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..autoencoder import AutoencoderKL, build_kl
from ..config import SMALL
from ..layers import AttnBlock, ResnetBlock
from ..regularizer import DiagonalGaussianRegularizer
from .photos import centre_crop, psnr, random_crops, read_photos

KL_WEIGHT = 1e-5
EMA_DECAY = 0.999
WARM_UP_STEPS = 100
START_LOGVAR = -6.0
LARGE_CROP_SHARE = 0.3
"""The last part of the steps sees crops of twice the side, a quarter as many: closer to whole images."""


OPPONENT = torch.nn.functional.normalize(torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]]), dim=1)
"""Brightness and two colour differences, orthonormal. The absolute error is taken there: taken on red, green and blue,
a brightness error common to the three decides the sign of all their gradients, whatever the colour error is."""


def reconstruction_loss(x: Tensor, y: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Mean absolute plus twice the mean squared error, and the KL per latent element times KL_WEIGHT."""
    error = torch.einsum("oc,bchw->bohw", OPPONENT.to(x.device), y.float() - x)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    return error.abs().mean() + 2 * error.square().mean() + KL_WEIGHT * kl


def prepare(model: AutoencoderKL) -> None:
    """Start values that let a short training get somewhere.

    Residual branches start at zero, so that the network starts as its skip connections; the posterior starts nearly
    noiseless, or weak signals (colour, fine detail) drown in it; conv_in starts four times as sensitive to colour
    differences as to brightness, because photographs hold about that much less of them.
    """
    colour_gain = OPPONENT.T @ torch.diag(torch.tensor([1.0, 4.0, 4.0])) @ OPPONENT
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, ResnetBlock):
                layer.conv2.weight.zero_()
            elif isinstance(layer, AttnBlock):
                layer.proj_out.weight.zero_()
        encoder: Any = model.encoder
        encoder.conv_in.weight.copy_(torch.einsum("ocij,cd->odij", encoder.conv_in.weight, colour_gain))
        model.quant_conv.weight[SMALL.embed_dim :].zero_()
        bias = model.quant_conv.bias
        assert bias is not None
        bias[SMALL.embed_dim :] = START_LOGVAR


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, then half a cosine down to 1 % of the peak."""
    warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
    return peak * warm_up * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def train_step(model: AutoencoderKL, x: Tensor, generator: torch.Generator) -> Tensor:
    """Loss of one batch, with a sampled posterior."""
    with torch.autocast(x.device.type, torch.bfloat16):
        moments, _ = model.encode(x, unregularized=True)
        mean, logvar = moments.float().chunk(2, dim=1)
        logvar = logvar.clamp(-30, 20)
        noise = torch.randn(mean.shape, generator=generator).to(x.device)
        y = model.decode(mean + torch.exp(0.5 * logvar) * noise)
    return reconstruction_loss(x, y, mean, logvar)


@torch.inference_mode()
def evaluate(model: AutoencoderKL, photos: list[Tensor], device: torch.device) -> tuple[list[float], float]:
    """PSNR in dB of every 512-pixel centre crop (posterior mean), and the deviation of the latents."""
    scores: list[float] = []
    deviations: list[float] = []
    for photo in photos:
        x = centre_crop(photo, 512).to(device)
        z = model.encode(x)
        scores.append(psnr(x, model.decode(z)))
        deviations.append(float(z.std()))
    return scores, sum(deviations) / len(deviations)


def save_half(model: AutoencoderKL, path: Path) -> None:
    """Write the weights as float16 safetensors with ldm keys and the number of norm groups in the header."""
    tensors = {name: tensor.detach().half().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, path, metadata={"norm_num_groups": str(SMALL.num_groups)})


def write_report(options: argparse.Namespace, curve: list[dict[str, float]], scores: list[float]) -> None:
    """Settings, the curve so far and the newest PSNR of each photograph, as training.json."""
    settings = {name: value for name, value in vars(options).items() if not isinstance(value, Path)}
    report = {"settings": settings, "curve": curve, "psnr_db": [round(score, 2) for score in scores]}
    (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def train(options: argparse.Namespace) -> None:
    """The whole run; writes exact_vae_small.safetensors and training.json into the output folder."""
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    photos, judged = read_photos(options.photos), read_photos(options.val)
    model = build_kl(SMALL, sample_posterior=True)
    prepare(model)
    model.to(device)
    averaged = copy.deepcopy(model).eval()
    averaged.regularization = DiagonalGaussianRegularizer(sample=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    curve: list[dict[str, float]] = []
    started = time.perf_counter()
    running = 0.0
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, options.lr)
        last_part = step >= options.steps * (1 - LARGE_CROP_SHARE)
        size, count = (2 * options.crop, options.batch // 4) if last_part else (options.crop, options.batch)
        loss = train_step(model, random_crops(photos, count, size, generator).to(device), generator)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        with torch.no_grad():
            for slow, fast in zip(averaged.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 1 - decay)
        value = float(loss.detach())
        running = value if step == 0 else 0.98 * running + 0.02 * value
        if (step + 1) % options.evaluate_every == 0 or step + 1 == options.steps:
            scores, deviation = evaluate(averaged, judged if step + 1 == options.steps else judged[:6], device)
            record = {"step": step + 1, "loss": running, "psnr_db": sum(scores) / len(scores), "latent_std": deviation}
            record["minutes"] = (time.perf_counter() - started) / 60
            curve.append({name: round(value, 4) for name, value in record.items()})
            print(curve[-1], flush=True)
            save_half(averaged, options.out / "exact_vae_small.safetensors")
            settings = {
                name: str(value) for name, value in vars(options).items() if name not in ("photos", "val", "out")
            }
            report = {
                "settings": settings,
                "photos": len(photos),
                "curve": curve,
                "psnr_db": [round(s, 2) for s in scores],
            }
            (options.out / "training.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True, help="folder of training photographs")
    parser.add_argument("--val", type=Path, required=True, help="folder of photographs to judge by")
    parser.add_argument("--out", type=Path, required=True, help="existing folder for the weights and training.json")
    parser.add_argument("--steps", type=int, default=7000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=64, help="side of the training crops in pixels, a multiple of 8")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--evaluate-every", type=int, default=500)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
