"""A training whose numbers stop being numbers ends there, says what broke, and spoils nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact_vae.__main__ import main
from safetensors.torch import load_file

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae.tests.training.case import with_params, write_config
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.divergence import DivergedError, broken
from exact_vae.vae_model.training.fit import Prepared, prepare, run
from exact_vae.vae_model.training.kl_module import AutoEncoderKL
from exact_vae.vae_model.training.recipe import read_config
from exact_vae.vae_model.training.trained import MOST_SKIPPED

# Lightning 2.6 itself uses what torch has deprecated.
deprecated = pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning")
pytestmark = [pytest.mark.usefixtures("one_thread"), deprecated]
NAN = float("nan")
DISCRIMINATOR = {"terms": {"l1": 1.0}, "disc_weight": 0.1, "disc_width": 4, "disc_layers": 1}


def before_batch(number: int, folder: Path, damage: Callable[[Any], None]) -> tuple[Any, dict[str, bytes]]:
    """A callback that damages the module before a batch, numbered from 1; and what the folder holds then."""
    from lightning import Callback

    files: dict[str, bytes] = {}

    class Damage(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            if batch_idx + 1 == number:
                files.update(read(folder))
                damage(pl_module)

    return Damage(), files


def read(folder: Path) -> dict[str, bytes]:
    """Every file that is not a log."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and "log" not in path.parts}


def spoil_loss(module: Any) -> None:
    likeness = module.loss.likeness
    module.loss.likeness = lambda x, y: likeness(x, y) * NAN


def spoil_gradient(module: Any) -> None:
    module.model.decoder.conv_in.weight.register_hook(lambda gradient: gradient * float("inf"))


def spoil_discriminator(module: Any) -> None:
    module.loss.disc_loss = lambda real, fake: (real.mean() + fake.mean()) * NAN


def spoil_discriminators_weight(module: Any) -> None:
    module.loss.discriminator.register_buffer("unused", torch.tensor(NAN), persistent=True)


def spoil_average(module: Any) -> None:
    next(buffer for name, buffer in module.model_ema.named_buffers() if "conv_in" in name).fill_(NAN)


def spoil_check(module: Any) -> None:
    module.validation_losses = lambda x: (x, {"val/rec_loss": torch.tensor(NAN), "val/total_loss": torch.tensor(NAN)})


def spoil_range(module: Any) -> None:
    with torch.no_grad():
        module.model.quant_conv.bias[:1] = 1e5  # finite, but not in float16


@pytest.mark.parametrize(
    ("damage", "batch", "text"),
    [
        (spoil_loss, 4, r"got nan in train/total_loss, nan in train/rec_loss, nan in train/nll_loss at batch 4 of 8: "),
        (spoil_gradient, 4, r"got no finite norm of the gradients at batch 4 of 8: lower optimizer\.lr \(0\.003\)"),
        (spoil_discriminator, 4, r"got nan in train/disc_loss at batch 4 of 8"),
        (spoil_discriminators_weight, 3, r"got nan in loss\.discriminator\.unused after batch 4 of 8"),
        (spoil_average, 3, r"got nan in model_ema\.encoderconv_inweight after batch 4 of 8"),
        (spoil_check, 3, r"got nan in val/rec_loss, nan in val/total_loss in the check after batch 4 of 8"),
        (spoil_range, 4, r"got 1e\+05 in quant_conv\.bias.* after batch 4 of 8.*write bfloat16 or float32"),
    ],
)
def test_it_stops_at_the_first_number_that_is_none(
    tmp_path: Path, photos: Path, damage: Callable[[Any], None], batch: int, text: str
) -> None:
    model = with_params(monitor="val/psnr", lossconfig={"params": DISCRIMINATOR})
    config = read_config(write_config(tmp_path, photos, model, batches=8, check_every=2), ["output.dtype=float16"])
    prepared = prepare(config, progress=False)
    callback, files = before_batch(batch, tmp_path / "run", damage)
    prepared.trainer.callbacks.append(callback)  # pyright: ignore
    with pytest.raises(DivergedError, match=text) as caught:
        run(prepared)
    assert str(caught.value).endswith(f"{tmp_path / 'run'} is as after batch 2, from where --resume goes on")
    assert "\n" not in str(caught.value)
    names = {Path(name).name for name in files}
    assert {"last.ckpt", "vae.safetensors", "best.safetensors", "best.json", "training.json"} <= names
    assert read(tmp_path / "run") == files, "what was written at the last finite check has changed"


def test_the_command_says_it_in_a_line_and_exits_with_2(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, photos, batches=8, check_every=4)
    assert main(["train", config, "optimizer.lr=1e8", "optimizer.warm_up=0", "output.dtype=float16", "--quiet"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("exact-vae: training: expected finite ")
    assert "of 8: lower optimizer.lr (1e+08)" in printed
    assert printed.endswith("nothing is written\n")
    assert printed.count("\n") == 1
    assert not list((tmp_path / "run").glob("*.safetensors"))


def test_it_goes_on_from_the_last_finite_check(tmp_path: Path, photos: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(write_config(whole, photos, batches=6, check_every=2), quiet=True)
    config = write_config(parts, photos, batches=6, check_every=2)
    prepared: Prepared = prepare(read_config(config), progress=False)
    prepared.trainer.callbacks.append(before_batch(4, parts / "run", spoil_loss)[0])  # pyright: ignore
    with pytest.raises(DivergedError, match="is as after batch 2"):
        run(prepared)
    train(config, resume=True, quiet=True)
    first, second = (load_file(folder / "run" / "vae.safetensors") for folder in (whole, parts))
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("scaled", [True, False])
def test_a_scaler_may_leave_out_some_steps_but_not_all(scaled: bool) -> None:
    """What a scaler of 16-bit gradients does at the start of every training, and what it does when all is lost."""
    module: Any = AutoEncoderKL(**with_params()["params"])
    plugin = SimpleNamespace(scaler=object()) if scaled else SimpleNamespace()
    module._trainer = SimpleNamespace(precision_plugin=plugin, world_size=1, validating=False)
    weights = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    first, other = (torch.optim.SGD([weight], lr=1.0) for weight in weights)

    def step(optimizer: torch.optim.Optimizer, gradient: float) -> None:
        for weight in weights:
            weight.grad = torch.full((2,), gradient)
        module.on_before_optimizer_step(optimizer)

    for gradient in (*[NAN] * MOST_SKIPPED, 1.0, *[NAN] * MOST_SKIPPED) if scaled else (1.0,):
        step(first, gradient)
    if scaled:
        step(other, NAN)
    with pytest.raises(DivergedError, match="no finite norm of the gradients"):
        step(first, NAN)


@pytest.mark.parametrize("lost", [False, True])
def test_sixteen_bit_gradients_may_overflow_at_first(
    tmp_path: Path, photos: Path, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scaler that begins far too high finds its scale; where every step overflows, the training ends."""
    from exact_vae.vae_model.training import trained
    from lightning.pytorch.plugins import MixedPrecision

    monkeypatch.setattr(trained, "MOST_SKIPPED", 13)
    words = ["data.batch_size=1", "data.crop=8", "data.val_limit=1"]  # 16-bit convolutions on CPUs take their time
    prepared = prepare(read_config(write_config(tmp_path, photos, batches=16, check_every=8), words), progress=False)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)  # pyright: ignore
    prepared.trainer.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    before = prepared.module.model.decoder.conv_in.weight.clone()  # pyright: ignore
    if lost:
        spoil_gradient(prepared.module)
        with pytest.raises(DivergedError, match=r"no finite norm of the gradients at batch 14 of 16.*after batch 8"):
            run(prepared)
        return
    run(prepared)
    assert prepared.module.batches_done == 16
    assert 2**9 < scaler.get_scale() < 2**22  # some steps were left out, not all
    assert not torch.equal(prepared.module.model.decoder.conv_in.weight, before)  # pyright: ignore


def test_what_is_broken_is_named() -> None:
    values = {
        "a": torch.tensor([1.0, NAN]),
        "b": torch.tensor([2.0]),
        "c": torch.tensor([-7e4]),
        "d": -torch.ones(1) / 0,
    }
    assert broken(values) == ["nan in a", "inf in d"]
    assert broken(values, {"c": 65504.0, "d": 65504.0}) == ["nan in a", "7e+04 in c", "inf in d"]
    assert broken({}) == []
