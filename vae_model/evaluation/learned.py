"""LPIPS and reconstruction FID, where their packages and their networks' weights are on this machine.

Nothing is downloaded: the networks' weights are looked for where torch.hub keeps its files. LPIPS: Zhang and others
2018, with AlexNet (package lpips). FID: Heusel and others 2017, on the features of the Inception network that the
published figures use (package torch-fidelity).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors.listed import first_line

ALEXNET = "alexnet-owt-7be5be79.pth"
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"

Metric = Callable[[Tensor, Tensor], Tensor]
Features = Callable[[Tensor], Tensor]


def load_lpips() -> tuple[Metric | None, str]:
    """(distance of image batches (B, 3, H, W) in -1..1 -> (B,), ""), or (None, why it is absent)."""
    package, _, reason = _find("lpips", "lpips", ALEXNET)
    if package is None:
        return None, reason
    network = lpips_network(package, "alex")
    return lambda x, y: network(x.float(), y.float()).flatten().double(), ""


def lpips_network(package: Any, backbone: str) -> Any:
    """The network of the package `lpips` over "alex", which judges best, or "vgg", which trains best; frozen."""
    return package.LPIPS(net=backbone, verbose=False).eval().requires_grad_(False)


def load_inception() -> tuple[Features | None, str]:
    """(features of image batches (B, 3, H, W) in -1..1 -> (B, 2048), ""), or (None, why they are absent)."""
    package, path, reason = _find("torch_fidelity.feature_extractor_inceptionv3", "torch-fidelity", INCEPTION)
    if package is None:
        return None, reason
    network = package.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path)
    )
    return lambda x: network(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))[0].double(), ""


def _find(module: str, package: str, weights: str) -> tuple[Any, Path, str]:
    """(module or None, path of the weights, why it is None)."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / weights
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        return None, path, f"package {package} is not installed ({error.name} is missing)"
    except (ImportError, RuntimeError, OSError) as error:  # torchvision of another build fails in any of these ways
        return None, path, f"package {package} cannot be imported ({first_line(error, 100)})"
    return (found, path, "") if path.is_file() else (None, path, f"weights {weights} are not in {path.parent}")


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Between the Gaussians of two sets of features (n, d) and (m, d), two rows or more each; biased for few rows.

    The trace of the root of the product of both covariances is the sum of singular values of one small matrix, so no
    root of a singular matrix is taken.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise ValueError(f"features: expected two rows or more of one width, got {a.shape} and {b.shape}: add images")
    roots: list[Tensor] = []
    for features in (a.double(), b.double()):
        centred = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
        roots.append(torch.linalg.qr(centred)[1] if len(centred) > centred.shape[1] else centred)
    means = (a.double().mean(dim=0) - b.double().mean(dim=0)).square().sum()
    spreads = roots[0].square().sum() + roots[1].square().sum()
    return float(means + spreads - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum())
