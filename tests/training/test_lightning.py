"""A module under a Lightning Trainer of one's own: batches as loaders make them, names, checkpoints, precision."""

from __future__ import annotations

import copy
import inspect
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

pytest.importorskip("lightning", reason="the trainer's packages are absent: pip install 'exact-vae[train]'")
from exact_vae import load_vae, save
from exact_vae.tests.training.case import TINY, write_config
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.training.command import train
from exact_vae.vae_model.training.config import OptimizerSection
from exact_vae.vae_model.training.distill import TinyDistillation
from exact_vae.vae_model.training.kl_module import AutoEncoderKL
from safetensors.torch import load_file

lightning: Any = pytest.importorskip("lightning", reason="as above")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Lightning 2.6 itself uses what torch has deprecated, and advises many worker processes.
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*"),
]
PARAMS: dict[str, Any] = copy.deepcopy(TINY["params"])


def made(**params: Any) -> AutoEncoderKL:
    """The smallest module, always with the same start values."""
    torch.manual_seed(0)
    return AutoEncoderKL(**{**PARAMS, **params})


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def fit(module: AutoEncoderKL, items: Any = None, kind: Any = lightning.Trainer, **options: Any) -> Any:
    """Two epochs of two batches, each judged; returns the Trainer."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = kind(
        max_epochs=2, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    items = list(images()) if items is None else items
    torch.manual_seed(1)
    trainer.fit(module, DataLoader(items, 2), DataLoader(items, 2))
    return trainer


def parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.named_parameters()}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(value, second[name]) for name, value in first.items())


FORMS: dict[str, Any] = {
    "mapping": lambda x: {"jpg": x},
    "latent-diffusion's": lambda x: {"image": x.movedim(0, 2)},  # its images have channels last
    "key": lambda x: {"photo": x, "caption": "none"},
    "image and label": lambda x: (x, 0),
    "channels last": lambda x: x.movedim(0, 2),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_as_loaders_make_them(form: str) -> None:
    plain, given = made(), made(input_key="photo") if form == "key" else made()
    fit(plain)
    trainer = fit(given, [FORMS[form](x) for x in images()])
    assert_same(parameters(plain), parameters(given))
    assert trainer.callback_metrics["val/psnr"] > 0
    assert not torch.equal(parameters(plain)["encoder.conv_in.weight"], parameters(made())["encoder.conv_in.weight"])


def test_bytes_are_scaled() -> None:
    steps = ((images() + 1) * 127.5).round().to(torch.uint8)
    x, _ = made().get_input(steps)
    torch.testing.assert_close(x, steps / 127.5 - 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"photo": images()}, "batch: expected an entry 'jpg', got photo: set input_key to one of these"),
        ("photo.png", "batch: expected a tensor, a mapping with 'jpg' or (images, ...), got str"),
        (images() * 127.5 + 127.5, "images: expected floats (B, C, H, W) in -1..1, got float32 (4, 3, 16, 16) in 0."),
        (images() * 127.5, "images: expected floats (B, C, H, W) in -1..1, got float32 (4, 3, 16, 16) in -12"),
        (images()[:, :2], "images: expected 3 channels, (B, 3, H, W), got (4, 2, 16, 16)"),
        (images()[0], "images: expected floats (B, C, H, W) in -1..1, got float32 (3, 16, 16)"),
        (images() * float("nan"), "images: expected floats"),
    ],
)
def test_other_batches_are_refused_in_a_line(batch: Any, text: str) -> None:
    with pytest.raises(InputError) as caught:
        made().get_input(batch)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_the_documents() -> None:
    module = made(ema_decay=None)
    names = {name.split(".")[0] for name in module.state_dict()}
    assert names == {"encoder", "decoder", "quant_conv", "post_quant_conv", "loss"}
    assert [type(part) for part in (module.quant_conv, module.post_quant_conv)] == [nn.Conv2d, nn.Conv2d]
    assert module.state_dict().keys() - {"loss.logvar"} == module.model.state_dict().keys()
    assert module.encoder is module.model.encoder
    assert len(list(module.parameters())) == len({id(p) for p in module.parameters()})
    module.load_state_dict({f"{name}": value for name, value in made(ema_decay=None).state_dict().items()})
    module.double()
    assert module.model.encoder.conv_in.weight.dtype == torch.float64


def test_a_state_dict_opens_as_a_vae(tmp_path: Path) -> None:
    module = made(ema_decay=None)
    with torch.no_grad():
        expected = module.encode(images()).mean
        torch.save(module.state_dict(), tmp_path / "state.pt")
        for source in (module.state_dict(), tmp_path / "state.pt"):
            vae = load_vae(source, device="cpu", dtype="float32", config={"norm_num_groups": 4})
            found = vae.encode(images().movedim(1, 3) / 2 + 0.5)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("averaged", [False, True])
def test_save_writes_the_module(tmp_path: Path, averaged: bool) -> None:
    module = made(ema_decay=0.5 if averaged else None)
    fit(module)
    trained = {name: value.clone() for name, value in module.model.state_dict().items()}
    save(module, tmp_path / "a.safetensors")
    assert_same(trained, dict(module.model.state_dict()))
    found = load_file(tmp_path / "a.safetensors")
    same = torch.equal(found["decoder.conv_in.weight"], trained["decoder.conv_in.weight"])
    assert same is not averaged
    if averaged:
        assert torch.equal(found["decoder.conv_in.weight"], module.model_ema.decoderconv_inweight)  # pyright: ignore
    save(module, tmp_path / "b.safetensors", layout="diffusers", dtype=torch.float16)
    assert load_vae(tmp_path / "b.safetensors", device="cpu").latent_channels == 4


@pytest.mark.parametrize("weights_only", [False, True])
def test_load_from_checkpoint(tmp_path: Path, weights_only: bool) -> None:
    module = made(ema_decay=0.9, train=("decoder",), monitor="val/psnr")
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    asked = "weights_only" in inspect.signature(lightning.LightningModule.load_from_checkpoint).parameters
    options = {"weights_only": weights_only} if asked else {}  # of Lightning 2.6
    again = AutoEncoderKL.load_from_checkpoint(tmp_path / "a.ckpt", **options)
    assert_same(parameters(module), parameters(again))
    assert_same(dict(module.model_ema.named_buffers()), dict(again.model_ema.named_buffers()))  # pyright: ignore
    assert [p.requires_grad for p in module.parameters()] == [p.requires_grad for p in again.parameters()]
    assert (again.monitor, again.batches_done, again.hparams["embed_dim"]) == ("val/psnr", 4, 4)
    assert load_vae(tmp_path / "a.ckpt", device="cpu", config={"norm_num_groups": 4}).latent_channels == 4


def test_a_checkpoint_needs_no_file_that_it_started_from(tmp_path: Path) -> None:
    save(made(), tmp_path / "start.safetensors")
    module = AutoEncoderKL(ckpt_path=str(tmp_path / "start.safetensors"), lossconfig=PARAMS["lossconfig"])
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    (tmp_path / "start.safetensors").unlink()
    assert_same(parameters(module), parameters(AutoEncoderKL.load_from_checkpoint(tmp_path / "a.ckpt")))


def test_every_setting_of_the_network_comes_back(tmp_path: Path) -> None:
    extra = {"tanh_out": True, "conv_shortcut": True, "resamp_with_conv": False}
    module = made(ddconfig={**PARAMS["ddconfig"], **extra})
    save(module, tmp_path / "a.safetensors")
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    again = AutoEncoderKL.load_from_checkpoint(tmp_path / "a.ckpt")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = module.decode(z)
        assert torch.equal(again.decode(z), expected)
    assert float(expected.abs().max()) <= 1
    started = AutoEncoderKL(ckpt_path=str(tmp_path / "a.safetensors"), lossconfig=PARAMS["lossconfig"])
    with torch.no_grad():
        assert torch.equal(started.decode(z), made(ddconfig={**PARAMS["ddconfig"], **extra}).decode(z))


def test_a_checkpoint_of_a_tiny_decoder(tmp_path: Path) -> None:
    loss = {"params": {"terms": {"l1": 1.0}}}
    module = TinyDistillation("bundled", width=8, blocks=1, scaling_factor=0.25, lossconfig=loss)
    assert {name.split(".")[0] for name in module.state_dict()} == {"decoder", "loss"}
    fit(module).save_checkpoint(tmp_path / "a.ckpt")  # pyright: ignore[reportArgumentType]
    again = TinyDistillation.load_from_checkpoint(tmp_path / "a.ckpt")
    assert_same(parameters(module), parameters(again))
    assert again.model.scaling_factor == 0.25
    save(again, tmp_path / "a.safetensors")
    assert load_vae(tmp_path / "a.safetensors", device="cpu").latent_channels == 16


class Own(nn.Module):
    """A loss of one's own."""

    def forward(self, x: Tensor, y: Tensor, posterior: Any, step: int, last: Any, split: str) -> Tensor:
        """The mean squared error."""
        return (x - y).square().mean()


def test_a_loss_of_ones_own_is_given_again(tmp_path: Path) -> None:
    module = made(lossconfig=Own())
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    text = r"expected the loss that it was trained with, .*Own, got .*AutoencoderLoss: give it, as in load_from"
    with pytest.raises(InputError, match=text):
        AutoEncoderKL.load_from_checkpoint(tmp_path / "a.ckpt")
    again = AutoEncoderKL.load_from_checkpoint(tmp_path / "a.ckpt", lossconfig=Own())
    assert_same(parameters(module), parameters(again))


def test_checkpoints_from_before_the_names_changed_are_resumed(tmp_path: Path, photos: Path) -> None:
    """Until then everything but the loss and the averages was called model..., and no arguments were stored."""
    config = write_config(tmp_path, photos, batches=2, check_every=2)
    train(config, quiet=True)
    path = tmp_path / "run" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    kept = ("loss.", "model_ema.")
    stored["state_dict"] = {
        name if name.startswith(kept) else f"model.{name}": value for name, value in stored["state_dict"].items()
    }
    assert "model.encoder.conv_in.weight" in stored["state_dict"]
    del stored["hyper_parameters"], stored["own_loss"]
    torch.save(stored, path)
    train(config, ["trainer.batches=4"], resume=True, quiet=True)
    again = torch.load(path, weights_only=True)
    assert again["batches_done"] == 4
    assert "encoder.conv_in.weight" in again["state_dict"]


def test_a_trainers_accumulation_and_clipping_are_followed() -> None:
    """Clipped steps are as long as they may be, one for two batches; the Trainer keeps its words."""
    module, whole = (made(train=("decoder",)) for _ in range(2))
    for each in (module, whole):
        each.settings = OptimizerSection(target="torch.optim.SGD", lr=1e-2)
    trainer = fit(module, accumulate_grad_batches=2, gradient_clip_val=0.5)
    assert (trainer.accumulate_grad_batches, trainer.gradient_clip_val) == (2, 0.5)
    assert (module.accumulate, module.clip, trainer.global_step) == (2, 0.5, 2)
    start = parameters(made(train=("decoder",)))
    moved = torch.cat([(value - start[name]).flatten() for name, value in parameters(module).items()])
    assert 0 < float(moved.norm()) <= 2 * 0.5 * 1e-2 * (1 + 1e-4)  # two steps of clipped gradients
    with pytest.raises(InputError, match="gradient_clip_algorithm: expected norm, got value: leave it out"):
        fit(whole, gradient_clip_val=0.5, gradient_clip_algorithm="value")


def test_the_schedule_knows_how_long_a_trainer_runs() -> None:
    module = made()
    module.settings = OptimizerSection(lr=1e-3, schedule="linear", final_share=0.0)
    rates: list[float] = []

    class Look(lightning.Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            rates.append(pl_module.optimizers().param_groups[0]["lr"])

    fit(module, callbacks=[Look()])
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    module.learning_rate = 2e-3
    assert module.settings.lr == module.learning_rate == 2e-3


def test_the_other_package_trains_to_the_same_weights(tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning", reason="the older package is absent")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    one, other = made(), made()
    fit(one)
    trainer = fit(other, kind=pl.Trainer)
    assert isinstance(other, AutoEncoderKL)
    assert_same(parameters(one), parameters(other))
    assert trainer.callback_metrics["val/psnr"] > 0
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert_same(parameters(other), parameters(AutoEncoderKL.load_from_checkpoint(tmp_path / "a.ckpt")))
    fit(other)  # and back again


def test_16_mixed_scales_gradients_and_clips_them_as_they_are() -> None:
    """float16 on a CPU, as Lightning has it on GPUs: the steps are those of float32, but for rounding."""
    from lightning.pytorch.plugins import MixedPrecision

    plain, mixed = made(ema_decay=None), made(ema_decay=None)
    for each in (plain, mixed):
        each.settings, each.clip = OptimizerSection(target="torch.optim.SGD", lr=1.0), 1e-2
    fit(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)  # pyright: ignore[reportPrivateImportUsage]
    fit(mixed, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 1024
    start, moved, found = (parameters(each) for each in (made(ema_decay=None), plain, mixed))
    steps, scaled = (torch.cat([(end[n] - start[n]).flatten() for n in start]) for end in (moved, found))
    assert 0.01 < float(steps.norm()) < 0.05  # four steps of 0.01 at most
    torch.testing.assert_close(scaled, steps, rtol=0, atol=0.05 * float(steps.abs().max()))


def test_pictures_for_an_image_logger() -> None:
    found = made(colorize_nlabels=None).log_images({"jpg": images()}, split="val")
    assert {name: tuple(value.shape) for name, value in found.items()} == dict.fromkeys(
        ("inputs", "reconstructions", "samples"), (4, 3, 16, 16)
    )


def test_init_from_checkpoint(tmp_path: Path) -> None:
    save(made(), tmp_path / "a.safetensors")
    torch.manual_seed(5)
    module = AutoEncoderKL(**PARAMS)
    module.init_from_checkpoint(str(tmp_path / "a.safetensors"), ignore_keys=["decoder.conv_out"])
    expected, found = parameters(made().model), parameters(module.model)
    different = {name for name in found if not torch.equal(found[name], expected[name])}
    assert different == {"decoder.conv_out.weight", "decoder.conv_out.bias"}
