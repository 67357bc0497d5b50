"""What every training of this project shares: manual steps, schedule, moving average, counting, judging.

A batch is counted once whatever the number of optimisers. All that a batch does follows from its number, the seed and
the state in the checkpoint, so a training that was interrupted goes on as if it had not been.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..ema import LitEma
from ..instantiate import instantiate_optimizer
from .batches import images_of
from .config import OptimizerSection
from .crops import generator_of
from .given_loss import GivenLoss, as_loss
from .lightning_base import EitherModule
from .metrics import LEAST_SIDE, psnr, ssim
from .own_trainer import TrainerWords, batches_of_trainer
from .schedule import rate_share
from .sharded import filled, shard_parts, spread_again, whole_tensors, without_weights
from .stored import OWN_LOSS, own_loss, plain, rename_parts, require_own_loss


class Trained(EitherModule):
    """Base of the trainings: `model` is what is written out at the end, `loss` may hold a discriminator.

    The parts of `model` (encoder, decoder, ...) are parts of this, so that they have their names in a state dict.

    Subclasses write `reconstruct`, `training_losses` and `validation_losses`.
    """

    model: nn.Module
    model_ema: LitEma | None

    def __init__(
        self, model: nn.Module, loss: Any, ema_decay: float | None, monitor: str | None, input_key: str = "jpg"
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        object.__setattr__(self, "model", model)  # not itself a part of this, or its tensors would have two names
        for name, part in model.named_children():
            self.add_module(name, part)
        self.loss, self.monitor, self.input_key = loss, monitor, input_key
        self._criterion: tuple[Any, Any] | None = None
        self._words = TrainerWords()
        self.ema_decay, self.model_ema = ema_decay, None
        self.settings = OptimizerSection()
        self.total_batches, self.accumulate, self.seed = 1, 1, 0
        self.clip: float | None = None
        self.batches_done = 0
        self._spread = False
        self._twin: list[nn.Module] = []
        """A copy without weights of a model whose weights are spread; in a list, so that it is no part of this."""

    @property
    def criterion(self) -> Any:
        """`loss` behind the interface of `autoencoder_loss.Loss`, also where it is one's own."""
        if self._criterion is None or self._criterion[0] is not self.loss:
            self._criterion = (self.loss, as_loss(self.loss))
        return self._criterion[1]

    # What differs between trainings.

    def factor(self) -> int:
        """Pixels along one side of a latent cell."""
        raise NotImplementedError

    def reconstruct(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(reconstructions, latents) of images in -1..1, without randomness."""
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

    @property
    def learning_rate(self) -> float:
        """The autoencoder's rate at its highest, under the name that latent-diffusion's trainer sets."""
        return self.settings.lr

    @learning_rate.setter
    def learning_rate(self, rate: float) -> None:
        self.settings = replace(self.settings, lr=rate)

    def remember(self, **arguments: Any) -> None:
        """Put the arguments of the constructor into `hparams`, for `load_from_checkpoint`."""
        self.save_hyperparameters(plain(arguments), logger=False)

    # Lightning's hooks.

    def configure_callbacks(self) -> list[Any]:
        """No callbacks: this is where a Trainer's settings are known and not yet refused."""
        self._words.take(self.trainer, self)
        return []

    def teardown(self, stage: str) -> None:
        """Leave the Trainer as it was."""
        self._words.give_back(self.trainer)

    def on_train_start(self) -> None:
        """Under a Trainer of one's own: how long it runs, for the schedule of the rate."""
        if self.total_batches == 1:  # which nobody has set
            self.total_batches = batches_of_trainer(self.trainer, len(_listed(self.optimizers())))

    def configure_model(self) -> None:
        """Spread the weights, where the strategy asks for it, and start the moving average."""
        if isinstance(self.criterion, GivenLoss):
            self.criterion.freeze_the_rest()
        if self.device_mesh is not None and not self._spread:
            self._spread, self._twin = True, [without_weights(self.model)]
            shard_parts(self.model, self.device_mesh["data_parallel"])
        if self.ema_decay is not None and self.model_ema is None:
            self.model_ema = LitEma(self.model, self.ema_decay)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One batch: the autoencoder's step, then the discriminator's."""
        x, numbers = self.get_input(batch)
        if numbers is not None:  # dropout and whatever else draws without a generator
            torch.manual_seed(generator_of(self.seed, int(numbers[0]), stream=1).initial_seed())
        optimizers = _listed(self.optimizers())
        self._set_rates(optimizers)
        discriminator: nn.Module | None = self.criterion.discriminator
        with _without_gradients(discriminator):
            total, reconstructions, log = self.training_losses(x, numbers)
            self._step(optimizers[0], total)
        if discriminator is not None and reconstructions is not None and self.batches_done >= self.criterion.disc_start:
            with self.in_float32():
                loss, more = self.criterion.judge(x.float(), reconstructions.detach().float(), "train")
            self._step(optimizers[1], loss)
            log |= more
        if self._completes_step() and self.model_ema is not None:
            self.model_ema(self.model)
        self.batches_done += 1
        shown = {key: log.pop(key) for key in ("train/total_loss", "train/rec_loss", "train/kl_loss") if key in log}
        together = self._processes() > 1
        self.log_dict(shown, prog_bar=True, sync_dist=together, batch_size=len(x))
        self.log_dict(log, sync_dist=together, batch_size=len(x))
        return total.detach()

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Losses and PSNR of one batch; returns inputs and reconstructions for the pictures."""
        x, _ = self.get_input(batch)
        y, log = self.validation_losses(x)
        shown = {"val/psnr": psnr(x, y).mean().float()}
        if min(x.shape[-2:]) >= LEAST_SIDE:
            log["val/ssim"] = ssim(x, y).mean().float()
        together = self._processes() > 1
        self.log_dict(shown, prog_bar=True, sync_dist=together, batch_size=len(x))
        self.log_dict(log, sync_dist=together, batch_size=len(x))
        return {"inputs": x, "reconstructions": y}

    @contextmanager
    def finished(self) -> Generator[nn.Module, None, None]:
        """The model to write out: with the averaged weights where there are any, in one piece. For all processes."""
        self.on_validation_epoch_start()
        try:
            if not self._spread:
                yield self.model
                return
            with filled(self._twin[0], whole_tensors(self.model)) as whole:
                yield whole
        finally:
            self.on_validation_epoch_end()

    def on_validation_epoch_start(self) -> None:
        """Judge the averaged weights; undone by `on_validation_epoch_end`, before any checkpoint is written."""
        spread_again(self.model)
        if self.model_ema is not None:
            self.model_ema.store(self.model.parameters())
            self.model_ema.copy_to(self.model)

    def on_validation_epoch_end(self) -> None:
        """Go on with the training weights."""
        spread_again(self.model)
        if self.model_ema is not None:
            self.model_ema.restore(self.model.parameters())

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The autoencoder's optimiser, and the discriminator's where there is one."""
        wanted = self.settings
        learned: Any = getattr(self.criterion, "get_trainable_autoencoder_parameters", tuple)
        ours = [p for p in (*self.model.parameters(), *learned()) if p.requires_grad]
        optimizers = [instantiate_optimizer(ours, wanted.lr, {"target": wanted.target, "params": wanted.params})]
        discriminator: nn.Module | None = self.criterion.discriminator
        if discriminator is not None:
            rate = wanted.lr if wanted.discriminator_lr is None else wanted.discriminator_lr
            how = {"target": wanted.discriminator_target, "params": wanted.discriminator_params}
            optimizers.append(instantiate_optimizer(discriminator.parameters(), rate, how))
        return optimizers

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is no tensor."""
        checkpoint["batches_done"], checkpoint[OWN_LOSS] = self.batches_done, own_loss(self.loss)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back."""
        rename_parts(checkpoint["state_dict"], dict(self.model.named_children()))
        require_own_loss(self.loss, checkpoint.get(OWN_LOSS))
        self.batches_done = int(checkpoint.get("batches_done", 0))

    # The parts of a step.

    def get_input(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        """(images (B, C, H, W) in -1..1, numbers of the crops or None) of a batch, whatever `images_of` reads."""
        x, numbers = images_of(batch, self.input_key)
        if self.device.type != "meta":
            x = x.to(next(self.model.parameters()).dtype)
        return x, numbers

    def in_float32(self) -> Any:
        """Without autocast: loss terms are sums of many small numbers."""
        return torch.autocast(self.device.type, enabled=False)

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

    def _processes(self) -> int:
        return self._trainer.world_size if self._trainer is not None else 1

    def _completes_step(self) -> bool:
        return (self.batches_done + 1) % self.accumulate == 0

    def _set_rates(self, optimizers: list[Any]) -> None:
        wanted = self.settings
        share = rate_share(wanted.schedule, self.batches_done, self.total_batches, wanted.warm_up, wanted.final_share)
        rates = (wanted.lr, wanted.lr if wanted.discriminator_lr is None else wanted.discriminator_lr)
        for optimizer, rate in zip(optimizers, rates, strict=False):
            for group in optimizer.param_groups:
                group["lr"] = rate * share

    def _step(self, optimizer: Any, loss: Tensor) -> None:
        self.manual_backward(loss / self.accumulate)
        if self._completes_step():
            if self.clip is not None:
                self.clip_gradients(optimizer, gradient_clip_val=self.clip, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()


def _listed(optimizers: Any) -> list[Any]:
    return optimizers if isinstance(optimizers, list) else [optimizers]


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
