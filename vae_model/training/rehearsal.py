"""A training's first batch, check and file before the first batch, so that what cannot work is told at once.

The batches of every stage go through the losses as fake tensors: shapes without values, in no time and no memory. Where
that fails, because a loss looks at values or because the batch cannot work, a grey batch decides; as it does for small
batches, which take less time than their shapes alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..checkpoint.save import require_savable
from ..errors.listed import argument_names, first_line, misspelt
from ..evaluation.metrics import LEAST_SIDE, psnr, ssim
from ..families.ldm.instantiate import OPTIMIZERS, instantiate_optimizer
from .autoencoder_loss import DefaultLoss
from .config import ConfigError, OptimizerSection, one_of, require
from .given_loss import GivenLoss, try_out
from .trained import Trained

CHANNELS = (1, 3, 4)
SMALL = 2**13
"""Values of a batch up to which it is tried with values: a crop of 52 pixels in colour."""


def rehearse(module: Trained, stages: Sequence[tuple[float, int, int]], val_side: int | None) -> None:
    """Try a training without its data.

    Args:    stages: (share, crop, batch size) of the training batches.
             val_side: pixels of the pictures that are judged, where there are any.
    Raises:  ConfigError (or another InputError), in one line, naming the setting.
    """
    _try_loss_and_monitor(module, stages, val_side)
    _try_optimizers(module.settings, module.criterion.discriminator is not None)
    if isinstance(module.criterion, GivenLoss):  # which has been tried with values already
        module.__dict__["_criterion"] = (module.loss, DefaultLoss())
    try:
        for _, side, count in stages:
            _try("data.crop, data.batch_size", module, count, side, judged=False)
        if val_side is not None:
            _try("data.val_crop", module, 1, val_side, judged=True)
    finally:
        module.__dict__["_criterion"] = None
    require_savable(module.model, "model.params")


def _try_loss_and_monitor(module: Trained, stages: Sequence[tuple[float, int, int]], val_side: int | None) -> None:
    """A loss of one's own, with values and gradients: anything may be in it; and that `monitor` names what is logged.

    Raises: ConfigError.
    """
    last, logged = module.get_last_layer(), module.logged_keys()
    if isinstance(module.criterion, GivenLoss) and last is not None:
        sizes = [(min(2, count), side) for _, side, count in stages] + ([] if val_side is None else [(1, val_side)])
        own = [try_out(module.criterion, *module.example(count, side), last) for count, side in sizes]
        logged += own[-1]
    if module.monitor is not None and val_side is not None:
        require(one_of("monitor", module.monitor, tuple(dict.fromkeys(logged))))


def check_channels(module: Trained) -> None:
    """ConfigError unless there are pictures of the model's channels, and its loss takes them."""
    given, made = module.image_channels()
    if given not in CHANNELS:
        raise ConfigError(
            f"in_channels: expected 1 (grey), 3 (colour) or 4 (colour and opacity), got {given}: take one of them"
        )
    if given != made:
        raise ConfigError(f"out_ch: expected as many channels as in_channels ({given}), got {made}: make them equal")
    for_colour = sorted({"opponent", "lpips"} & set(getattr(module.criterion, "terms", ())))
    if for_colour and made != 3:
        raise ConfigError(
            f"lossconfig: expected terms for images of {made} channels, got {', '.join(for_colour)}, for 3 alone: take "
            "l1, mse, gradient or structure"
        )
    judging = module.criterion.discriminator or nn.Identity()
    first = next((part for part in judging.modules() if isinstance(part, nn.Conv2d)), None)
    if first is not None and first.in_channels != made:
        raise ConfigError(
            f"lossconfig.params.in_channels (or disc_in_channels): expected {made} as the images have, "
            f"got {first.in_channels}: change it"
        )


def _try_optimizers(settings: OptimizerSection, judged: bool) -> None:
    """One step of each on a weight of its own: some take other arguments, some cannot do a plain step."""
    for prefix, (rate, how) in zip(("", "discriminator_")[: 1 + judged], settings.both, strict=False):
        weight = nn.Parameter(torch.zeros(2, 2))
        weight.grad = torch.ones(2, 2)
        try:
            instantiate_optimizer([weight], rate, how).step()
        except (TypeError, ValueError, RuntimeError, KeyError) as error:
            meant = misspelt(map(str, how["params"]), _arguments_of(str(how["target"])))
            way = f"say {meant[0][1]} instead of {meant[0][0]}" if meant else "change them"
            raise ConfigError(
                f"optimizer.{prefix}target, optimizer.{prefix}params: expected an optimizer of plain steps and its "
                f"arguments, got {how['target']} with {dict(how['params'])}: {way} ({first_line(error)})"
            ) from error


def _arguments_of(optimizer: str) -> list[str]:
    return argument_names(OPTIMIZERS[optimizer]) if optimizer in OPTIMIZERS else []


def _try(setting: str, module: Trained, count: int, side: int, *, judged: bool) -> None:
    channels = module.image_channels()[0]
    shape = (count, channels, side, side)
    kept = {name: buffer.clone() for name, buffer in module.named_buffers()}
    module.train(not judged)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            if math.prod(shape) > SMALL and _fits_as_shapes(module, shape, judged):
                return
            _batch(module, torch.zeros(*shape), judged)
    except (TypeError, ValueError, RuntimeError, LookupError, AttributeError) as error:
        raise ConfigError(
            f"{setting}, model.params: expected settings that fit together, got {count} x {channels} x {side} x {side} "
            f"pixels that cannot be {'judged' if judged else 'trained'}: change them ({first_line(error)})"
        ) from error
    finally:
        module.train()
        for name, buffer in module.named_buffers():  # what a forward pass counts is put back
            buffer.copy_(kept[name])


def _fits_as_shapes(module: Trained, shape: tuple[int, int, int, int], judged: bool) -> bool:
    """Whether a batch of fake tensors goes through; where it does not, whatever the reason, one with values decides."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            _batch(module, torch.zeros(*shape), judged)
    except Exception:
        return False
    return True


def _batch(module: Trained, x: Tensor, judged: bool) -> None:
    """A batch through everything but the gradients."""
    x = x.to(next(module.model.parameters()).dtype)
    if judged:
        y, _ = module.validation_losses(x)
        psnr(x, y)
        if min(x.shape[-2:]) >= LEAST_SIDE:
            ssim(x, y)
        return
    _, y, _ = module.training_losses(x, None)
    if module.criterion.discriminator is not None and y is not None:
        module.criterion.judge(x.float(), y.float(), "train")
