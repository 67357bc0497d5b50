"""What autoencoders share beside encoding and decoding: where images come from, the moving average, optimisers.

Source: `AbstractAutoencoder` of Stability-AI generative-models `sgm/models/autoencoder.py` (MIT), re-implemented.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ...errors import InputError
from ...errors.listed import argument_names, misspelt, some
from ..arguments import note_on_range, require_kinds
from .ema import LitEma
from .instantiate import instantiate_optimizer

logger = logging.getLogger(__name__)

_RANGE_SLACK = 1e-3
"""How far beyond -1..1 an image may lie: more than rounding, less than any other scaling."""

_Made = TypeVar("_Made")


class _Finished(type):
    """Calls `init_ema` after the whole constructor, so that the average finds every sub-module of every subclass.

    A TypeError also tells what a misspelt argument may mean: to Python it is one of a class below, or one is missing.
    """

    def __call__(cls: type[_Made], *args: Any, **kwargs: Any) -> _Made:
        try:
            made: Any = type.__call__(cls, *args, **kwargs)
        except TypeError as error:
            wrong = misspelt(kwargs, argument_names(cls))
            if not wrong:
                raise
            raise TypeError(f"{error}; say {wrong[0][1]} instead of {wrong[0][0]}") from error
        made.init_ema()
        return made


class AbstractAutoencoder(nn.Module, metaclass=_Finished):
    """Base of the autoencoders; `encode`, `decode` and `configure_optimizers` are for subclasses to write.

    Args:    ema_decay: keep a moving average of the trainable parameters in `model_ema`; None for none.
             monitor: name of the logged value that tells the best checkpoint; the attribute exists only when given.
             input_key: where the images are in a batch that is a mapping.
             unknown: any other keyword, and each is a TypeError that names it.
    """

    model_ema: LitEma
    monitor: str
    ema_decay: float | None = None
    use_ema = False

    def __init__(
        self, ema_decay: float | None = None, monitor: str | None = None, input_key: str = "jpg", **unknown: Any
    ) -> None:
        if unknown:
            raise TypeError(
                f"{type(self).__name__}: expected its arguments, ema_decay, monitor and input_key, got "
                f"{some(sorted(unknown))}: open weights by load_vae, train by AutoEncoderKL, leave out all else"
            )
        require_kinds(type(self).__name__, locals())
        super().__init__()
        self._told = set[str]()
        self.ema_decay, self.use_ema, self.input_key = ema_decay, ema_decay is not None, input_key
        if monitor is not None:
            self.monitor = monitor

    def init_ema(self) -> None:
        """Make `model_ema` from the parameters there are; runs by itself when construction is finished."""
        if self.ema_decay is not None:
            self.model_ema = LitEma(self, self.ema_decay)
            logger.info("moving average of %d tensors, decay %g", len(self.model_ema.m_name2s_name), self.ema_decay)

    def get_input(self, batch: Tensor | Mapping[str, Any] | Sequence[Any]) -> Tensor:
        """The images of a batch: the batch itself, its entry `input_key`, or the first of (images, labels, ...).

        Returns: (B, C, H, W), floating point, in -1..1.
        Raises:  InputError for another layout, dtype or range, and for a missing entry. The steps of `AutoEncoderKL`
                 are laxer: noise and standardised images, which go beyond -1..1, train with a warning.
        """
        if isinstance(batch, Mapping):
            if self.input_key not in batch:
                found = ", ".join(sorted(map(str, batch)))
                raise InputError(f"batch: expected an entry {self.input_key!r}, got {found}: set input_key")
            batch = batch[self.input_key]
        elif isinstance(batch, (tuple, list)) and batch and isinstance(batch[0], Tensor):
            batch = batch[0]
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            found = batch.dtype if isinstance(batch, Tensor) else type(batch).__name__
            raise InputError(f"images: expected a floating point tensor in -1..1, got {found}: convert and scale it")
        channels = getattr(getattr(self, "encoder", None), "in_channels", None)
        if batch.ndim != 4 or channels not in (None, batch.shape[1]):
            raise InputError(
                f"images: expected (B, {channels or 'C'}, H, W), got {tuple(batch.shape)}: put channels before rows"
            )
        if batch.numel() and not bool((batch.detach().abs() <= 1 + _RANGE_SLACK).all()):  # NaN is not in range either
            low, high = (float(value) for value in torch.aminmax(batch.detach()))
            raise InputError(f"images: expected values in -1..1, got {low:.4g} to {high:.4g}: scale them")
        note_on_range(batch, self._told)
        return batch

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """After an optimiser's step: move the average. The arguments are those of a trainer and unused."""
        if self.use_ema:
            self.model_ema(self)

    @contextmanager
    def ema_scope(self, context: str | None = None) -> Generator[None, None, None]:
        """Within it the parameters are the averaged ones; afterwards, whatever happened, they are as before.

        Scopes may be nested. Nothing happens without a moving average. `context` names the scope in the log.
        """
        if not self.use_ema:
            yield
            return
        parameters = list(self.parameters())
        self.model_ema.store(parameters)
        try:
            self.model_ema.copy_to(self)
            if context is not None:
                logger.info("%s: using the averaged weights", context)
            yield
        finally:
            self.model_ema.restore(parameters)
            if context is not None:
                logger.info("%s: back to the training weights", context)

    def encode(self, *args: Any, **kwargs: Any) -> Any:
        """Images to latents."""
        raise NotImplementedError(f"{type(self).__name__}: expected an encode method, got none: write one")

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """Latents to images."""
        raise NotImplementedError(f"{type(self).__name__}: expected a decode method, got none: write one")

    def instantiate_optimizer_from_config(
        self, params: Iterable[Any], lr: float, cfg: Mapping[str, Any]
    ) -> torch.optim.Optimizer:
        """The optimiser that `cfg` = {"target", "params"} names, from `instantiate.OPTIMIZERS` and nowhere else."""
        return instantiate_optimizer(params, lr, cfg)

    def configure_optimizers(self) -> Any:
        """The optimisers of a trainer."""
        raise NotImplementedError(
            f"{type(self).__name__}: expected configure_optimizers, got none: train with a trainer"
        )
