"""What every training of this project shares: manual steps, schedule, moving average, counting, judging.

A batch is counted once whatever the number of optimisers. All that a batch does follows from its number, the seed and
the state in the checkpoint, so a training that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..errors.listed import some
from ..evaluation.metrics import LEAST_SIDE, psnr, ssim
from ..families.arguments import note_on_range
from ..families.ldm.distribution import DiagonalGaussianDistribution
from ..families.ldm.ema import LitEma
from ..families.ldm.instantiate import instantiate_optimizer
from .batches import require_whole_cells
from .config import ConfigError
from .crops import generator_of
from .divergence import DivergedError, broken
from .model_module import ModelModule, as_list, require_wide
from .sharded import shard_parts, spread_again, whole_tensors, without_weights

MOST_SKIPPED = 30
"""Steps in a row that a gradient scaler may leave out: it halves its scale each time, from 65536 to below 1e-4."""


class Trained(ModelModule):
    """Base of the trainings: `model` is what is written out at the end, `loss` may hold a discriminator.

    Subclasses write `get_last_layer`, `training_losses` and `validation_losses`.
    """

    model_ema: LitEma | None

    def __init__(
        self, model: nn.Module, loss: Any, ema_decay: float | None, monitor: str | None, input_key: str = "jpg"
    ) -> None:
        super().__init__(model, loss, monitor, input_key)
        if ema_decay is not None and not 0 <= ema_decay <= 1:
            raise ConfigError(f"model.params.ema_decay: expected 0 to 1, got {ema_decay}: choose one between them")
        self.ema_decay, self.model_ema = ema_decay, None
        self._broken = ""
        self._skipped = Counter[int]()
        self._twin: list[nn.Module] = []
        """A copy without weights of a model whose weights are spread; in a list, so that it is no part of this."""

    # What differs between trainings.

    def get_last_layer(self) -> Tensor | None:
        """The weight of the decoder's last convolution, where there is a decoder."""
        raise NotImplementedError

    def training_losses(self, x: Tensor, numbers: Tensor | None) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """(what the autoencoder minimises, reconstructions for the discriminator or None, values to log)."""
        raise NotImplementedError

    def validation_losses(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(reconstructions, values to log)."""
        raise NotImplementedError

    def logged_keys(self) -> list[str]:
        """Names under which values of the validation are logged, for `monitor`."""
        return ["val/psnr", "val/ssim"]

    # Lightning's hooks.

    def configure_model(self) -> None:
        """Spread the weights, where the strategy asks for it, and start the moving average."""
        super().configure_model()
        if self.device_mesh is not None and not self._twin:
            self._twin = [without_weights(self.model)]
            shard_parts(self.model, self.device_mesh["data_parallel"])
        if self.ema_decay is not None and self.model_ema is None:
            self.model_ema = LitEma(self.model, self.ema_decay)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch: the autoencoder's step, then the discriminator's; returns the loss, detached.

        Called by hand, without a Trainer, it steps and logs nothing and returns the loss with its graph, for a loop of
        one's own: `loss.backward()`, then a step of `configure_optimizers()[0]`.

        Raises: InputError for sides that are no whole latent cells, for weights in 16 bits, and by hand with a
                discriminator, which would not be trained.
        """
        require_wide(self.model)
        x, numbers = self.get_input(batch)
        require_whole_cells(x, self.factor())
        if numbers is None:  # those of `exact-vae train` are as they should be
            note_on_range(x, self._told)
        discriminator: nn.Module | None = self.criterion.discriminator
        if not self.runs:
            if discriminator is not None:
                raise InputError(
                    "training_step: expected a Trainer, which trains the discriminator, too, got none: call "
                    "Trainer.fit, or take a loss without one"
                )
            return self.training_losses(x, numbers)[0]
        if numbers is not None:  # dropout and whatever else draws without a generator
            torch.manual_seed(generator_of(self.seed, int(numbers[0]), stream=1).initial_seed())
        optimizers = as_list(self.optimizers())
        share = self.settings.rate_share(self.batches_done, self.total_batches)
        for optimizer, (rate, _) in zip(optimizers, self.settings.both, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * share
        with _without_gradients(discriminator):
            total, reconstructions, log = self.training_losses(x, numbers)
            self._note_losses({"train/total_loss": total, **log})
            self._step(optimizers[0], total, waiting=discriminator)
        if discriminator is not None and reconstructions is not None and self.batches_done >= self.criterion.disc_start:
            with torch.autocast(self.device.type, enabled=False):
                loss, more = self.criterion.judge(x.float(), reconstructions.detach().float(), "train")
            self._note_losses({"train/disc_loss": loss, **more})
            self._step(optimizers[1], loss)
            log |= more
        if self._completes_step() and self.model_ema is not None:
            self.model_ema(self.model)
        self.batches_done += 1
        shown = {key: log.pop(key) for key in ("train/total_loss", "train/rec_loss", "train/kl_loss") if key in log}
        self._log(shown, log, len(x))
        return total.detach()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Losses and PSNR of one batch; returns inputs and reconstructions for the pictures."""
        require_wide(self.model)
        x, _ = self.get_input(batch)
        require_whole_cells(x, self.factor())
        y, log = self.validation_losses(x)
        self._note_losses(log)
        shown = {"val/psnr": psnr(x, y).mean().float()}
        if min(x.shape[-2:]) >= LEAST_SIDE:
            log["val/ssim"] = ssim(x, y).mean().float()
        if self.runs:
            self._log(shown, log, len(x))
        return {"inputs": x, "reconstructions": y}

    def _log(self, shown: dict[str, Tensor], log: dict[str, Tensor], count: int) -> None:
        """Values of `count` images, those that are shown with the bar first."""
        together = self._processes() > 1
        self.log_dict(shown, prog_bar=True, sync_dist=together, batch_size=count)
        self.log_dict(log, sync_dist=together, batch_size=count)

    @contextmanager
    def finished(self) -> Generator[nn.Module, None, None]:
        """The model to write out: with the averaged weights where there are any, in one piece. For all processes."""
        self.on_validation_epoch_start()
        try:
            for twin in self._twin:
                twin.load_state_dict(whole_tensors(self.model), strict=True, assign=True)
            yield self._twin[0] if self._twin else self.model
        finally:
            for twin in self._twin:
                twin.to("meta")
            self._take_average_out()

    def on_validation_epoch_start(self) -> None:
        """Judge the averaged weights; undone by `on_validation_epoch_end`, before any checkpoint is written."""
        spread_again(self.model)
        if self.model_ema is not None:
            self.model_ema.store(self.model.parameters())
            self.model_ema.copy_to(self.model)

    def on_validation_epoch_end(self) -> None:
        """Go on with the training weights, if the losses were finite."""
        self._take_average_out()
        self._stop_if_broken()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the gradients, and let no step be made that is none. Here they are scaled back already."""
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        norm: Any = nn.utils.clip_grad_norm_(parameters, math.inf if self.clip is None else self.clip)
        finite = math.isfinite(float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm))
        self._skipped[id(optimizer)] = 0 if finite else self._skipped[id(optimizer)] + 1
        most = 0 if self._scaler() is None else MOST_SKIPPED
        if self._skipped[id(optimizer)] > most:
            self._note(["no finite norm of the gradients"])
        self._stop_if_broken()

    def _take_average_out(self) -> None:
        spread_again(self.model)
        if self.model_ema is not None:
            self.model_ema.restore(self.model.parameters())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The autoencoder's optimiser, and the discriminator's where there is one."""
        learned: Any = getattr(self.criterion, "get_trainable_autoencoder_parameters", tuple)
        held = [[p for p in (*self.model.parameters(), *learned()) if p.requires_grad]]
        if self.criterion.discriminator is not None:
            held.append(list(self.criterion.discriminator.parameters()))
        return [
            instantiate_optimizer(ours, rate, how) for ours, (rate, how) in zip(held, self.settings.both, strict=False)
        ]

    # The parts of a step.

    def compare(
        self, x: Tensor, y: Tensor, posterior: DiagonalGaussianDistribution, split: str
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what the autoencoder minimises, values to log). Without autocast: its terms are sums of small numbers."""
        with torch.autocast(self.device.type, enabled=False):
            last = self.get_last_layer()
            return self.criterion.autoencoder(x, y, posterior, self.batches_done, last, split, self.average)

    def average(self, tensor: Tensor) -> Tensor:
        """Mean of a tensor over all processes."""
        return self.trainer.strategy.reduce(tensor, reduce_op="mean") if self._processes() > 1 else tensor  # pyright: ignore

    def noise_like(self, mean: Tensor, numbers: Tensor | None) -> Tensor:
        """Normal noise; of numbered crops, each its own, whatever batch it is in."""
        if numbers is None:
            return torch.randn_like(mean)
        rows = [
            torch.randn(mean.shape[1:], generator=generator_of(self.seed, int(number), stream=1)) for number in numbers
        ]
        return torch.stack(rows).to(mean)

    def _note_losses(self, log: dict[str, Tensor]) -> None:
        """Of the logged values only those that are losses have to be finite."""
        self._note(broken({name: value for name, value in log.items() if name.endswith("loss")}))

    def _note(self, found: list[str]) -> None:
        """Keep the first thing that is not finite. One process stops at once, several at the next step together."""
        if found and not self._broken:
            judged = self._trainer is not None and self.trainer.validating
            number = self.batches_done + (0 if judged else 1)
            end = f" of {self.total_batches}" if number <= self.total_batches else ""
            self._broken = f"{some(found)} {'in the check after' if judged else 'at'} batch {number}{end}"
            if self._processes() == 1 and not judged:
                self._stop_if_broken()

    def _stop_if_broken(self) -> None:
        broken_here = bool(self._broken)
        if self._processes() > 1:
            broken_here = self.trainer.strategy.reduce_boolean_decision(broken_here, all=False)
        if broken_here:
            raise DivergedError(
                f"training: expected finite losses, gradients and weights, got {self._broken or 'others elsewhere'}: "
                f"lower optimizer.lr ({self.settings.lr:g}) or raise optimizer.warm_up"
            )

    def _processes(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1

    def _completes_step(self) -> bool:
        return (self.batches_done + 1) % self.accumulate == 0

    def _scaler(self) -> Any:
        """The Trainer's scaler of 16-bit gradients, where it has one."""
        return getattr(self.trainer.precision_plugin, "scaler", None)

    def _step(self, optimizer: Any, loss: Tensor, waiting: nn.Module | None = None) -> None:
        """Backward and, where the batches are complete, a step. The gradients that `waiting` has collected stay right.

        A scaler sets its scale anew at every step of any optimizer. The discriminator's step comes after the
        autoencoder's: of accumulated batches all but the last would count half after the scale has grown, and twice
        after an overflow.
        """
        self.manual_backward(loss / self.accumulate)
        if not self._completes_step():
            return
        scaler = None if waiting is None else self._scaler()
        before = 1.0 if scaler is None else scaler.get_scale()
        optimizer.step()
        optimizer.zero_grad()
        factor = 1.0 if scaler is None else scaler.get_scale() / before
        if waiting is not None and factor != 1:
            for parameter in waiting.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)


@contextmanager
def _without_gradients(module: nn.Module | None) -> Generator[None, None, None]:
    """The module passes gradients through and collects none itself."""
    if module is None:
        yield
        return
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)
