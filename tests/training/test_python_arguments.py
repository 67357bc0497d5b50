"""The trainable classes called in Python with what a configuration may say, or with what is wrong: never Python's own
error, and never another training than was meant."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import InputError
from exact_vae.vae_model.bundled import BUNDLED_FILE
from exact_vae.vae_model.training.config import ConfigError
from exact_vae.vae_model.training.distill import TinyDistillation
from exact_vae.vae_model.training.kl_module import AutoEncoderKL
from safetensors.torch import load_file

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings(
    "ignore::FutureWarning:lightning", "ignore::DeprecationWarning", "ignore:.*does not have many workers"
)
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]

DD: dict[str, Any] = {
    "ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "in_channels": 3, "out_ch": 3, "z_channels": 4, "num_groups": 4,
}  # fmt: skip


def test_one_beginning_of_keys_is_not_its_letters() -> None:
    """`ignore_keys="decoder"` once ignored all keys that begin with d, e, c, o or r: encoder and decoder."""
    given = load_file(BUNDLED_FILE)
    for ignored in ("decoder.conv_out", ["decoder.conv_out"], ("decoder.conv_out",)):
        state = AutoEncoderKL(ckpt_path="bundled", ignore_keys=ignored).model.state_dict()
        differ = {key for key, value in given.items() if not torch.equal(value.float(), state[key])}
        assert differ == {"decoder.conv_out.weight", "decoder.conv_out.bias"}
    for nothing in (None, ()):
        state = AutoEncoderKL(ckpt_path=Path(BUNDLED_FILE), ignore_keys=nothing).model.state_dict()  # pyright: ignore
        assert all(torch.equal(value.float(), state[key]) for key, value in given.items())
    module = AutoEncoderKL(ckpt_path="bundled")
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.zero_()
    module.init_from_checkpoint("bundled", "decoder.conv_out")
    assert module.model.encoder.conv_in.weight.abs().max() > 0
    assert not module.model.decoder.conv_out.weight.any()


@pytest.mark.parametrize("make", [lambda **k: AutoEncoderKL(DD, 4, **k), lambda **k: TinyDistillation("bundled", **k)])
def test_one_half_may_be_a_word(make: Callable[..., Any]) -> None:
    module = make(train="decoder")
    trained = {name.split(".")[0] for name, weight in module.model.named_parameters() if weight.requires_grad}
    assert trained <= {"decoder", "post_quant_conv"}
    assert "decoder" in trained


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: AutoEncoderKL(DD, 4, ckpt_path=3), r"AutoEncoderKL\.ckpt_path: expected text or null, got 3"),
        (lambda: AutoEncoderKL(DD, 4, colorize_nlabels="five"), r"colorize_nlabels: expected a whole number or null"),
        (lambda: AutoEncoderKL(DD, 4, ema_decay="much"), r"ema_decay: expected a number or null, got 'much'"),
        (lambda: AutoEncoderKL(DD, 4, ema_decay=2), r"ema_decay: expected 0 to 1, got 2"),
        (lambda: AutoEncoderKL(DD, 4, train=3), r"AutoEncoderKL\.train: expected a list of \(text\), got 3"),
        (lambda: AutoEncoderKL(DD, 4, monitor=3), r"AutoEncoderKL\.monitor: expected text or null, got 3"),
        (lambda: AutoEncoderKL([1], 4), r"ddconfig: expected keys with values, got \[1\]: write ch, ch_mult"),
        (lambda: AutoEncoderKL("a.yaml", 4), r"ddconfig: expected keys with values, got 'a\.yaml'"),
        (lambda: AutoEncoderKL({**DD, "ch_mult": 2}, 4), r"ch_mult: expected a list of \(a whole number or a number\)"),
        (lambda: AutoEncoderKL(DD, 4, lossconfig=3), r"lossconfig: expected target and params, a name or a function,"),
        (
            lambda: AutoEncoderKL(DD, 4, lossconfig=["default_loss"]),
            r"lossconfig: .*, got \['default_loss'\]: give one",
        ),
        (
            lambda: AutoEncoderKL(DD, 4, lossconfig={"target": "default_loss", "params": [1]}),
            r"lossconfig\.params: expected keys with values, got \[1\]",
        ),
        (lambda: TinyDistillation(3), r"TinyDistillation\.teacher: expected text, got 3"),
        (lambda: TinyDistillation("bundled", width="wide"), r"TinyDistillation\.width: expected a whole number, got"),
        (
            lambda: setattr(AutoEncoderKL(DD, 4), "learning_rate", "fast"),
            r"optimizer\.lr: expected a finite number, got 'fast'",
        ),
        (lambda: setattr(AutoEncoderKL(DD, 4), "learning_rate", float("nan")), r"optimizer\.lr: expected .*, got nan"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(make: Callable[[], object], text: str) -> None:
    with pytest.raises(ConfigError, match=text) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_in_16_bits_are_not_trained(precision: str) -> None:
    from lightning import Trainer
    from torch.utils.data import DataLoader

    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        precision=precision,
        enable_model_summary=False,
        **quiet,  # pyright: ignore
    )
    text = r"^training: expected weights in float32 or float64, got (bfloat16|float16): say precision='bf16-mixed'"
    images: Any = [torch.zeros(3, 16, 16)]
    with pytest.raises(InputError, match=text):
        trainer.fit(AutoEncoderKL(DD, 4), DataLoader(images), DataLoader(images))
    with pytest.raises(InputError, match=text):
        AutoEncoderKL(DD, 4).half().training_step(torch.zeros(1, 3, 16, 16), 0)
    with pytest.raises(InputError, match=text):
        AutoEncoderKL(DD, 4).half().validation_step(torch.zeros(1, 3, 16, 16), 0)
