"""The moving average of a training: which weights are taken is told, and part="ema" takes the averaged ones."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae, save
from exact_vae.__main__ import main
from exact_vae.tests.training.case import TINY, with_params, write_config
from exact_vae.vae_model.checkpoint.candidates import TAKEN
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL, AutoencodingEngine
from safetensors.torch import load_file
from torch import Tensor

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # Lightning 2.6 itself uses what torch has deprecated, and advises many worker processes.
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning", "ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*", "ignore:.*smaller than the logging interval.*"),
]
DD: dict[str, Any] = TINY["params"]["ddconfig"]
GROUPS = {"norm_num_groups": 4}
NOTES = "exact_vae.vae_model.notes"
TINY_MODEL = {
    "target": "TinyDistillation",
    "params": {"teacher": "bundled", "width": 4, "blocks": 1, "ema_decay": 0.5, "scaling_factor": 0.5},
}
MODELS: dict[str, Any] = {
    "both halves": with_params(ema_decay=0.5),
    "decoder alone": with_params(ema_decay=0.5, train=["decoder"]),
    "tiny": TINY_MODEL,
}


def state_of(source: Any, **options: Any) -> dict[str, Tensor]:
    vae = load_vae(source, device="cpu", dtype="float32", **options)
    return dict(vae.first_stage_model.state_dict())


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def model_with_average(kind: Any = AutoencoderKL, steps: int = 3) -> Any:
    """Weights and an average that differ in every tensor."""
    torch.manual_seed(0)
    model = kind(4, {**DD, "double_z": True}, ema_decay=0.9)
    for _ in range(steps):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape)
        model.on_train_batch_end()
    return model.eval()


def plain_and_average(model: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Weights as they are and averaged ones, without what training keeps."""
    plain = {name: p.detach().clone() for name, p in model.named_parameters()}
    average = {name: model.model_ema.get_buffer(name.replace(".", "")).clone() for name in plain}
    return plain, average


@pytest.mark.parametrize("name", MODELS)
def test_a_training_s_checkpoint(
    name: str, tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lightning")
    from exact_vae.vae_model.training.command import train

    train(write_config(tmp_path, photos, MODELS[name], batches=3, check_every=3), quiet=True)
    last, written = tmp_path / "run" / "last.ckpt", state_of(tmp_path / "run" / "vae.safetensors")
    for part in ("ema", "model_ema"):
        assert same(state_of(last, part=part), written)
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger=NOTES):
        vae = load_vae(last, device="cpu", dtype="float32")
    stored: Any = torch.load(last, weights_only=True)["state_dict"]
    found = vae.first_stage_model.state_dict()
    assert same(found, {key: stored[key] for key in found})
    assert not same(found, written)
    assert len(caplog.messages) == 1
    assert "taken are the weights as trained last, not their moving average" in caplog.messages[0]
    caplog.clear()
    (ema, this) = re.findall(r"part='(\S+)'", next(note for note in vae.loaded.notes if "moving average" in note))
    with caplog.at_level(logging.WARNING, logger=NOTES):
        assert same(state_of(last, part=ema), written)
        assert same(state_of(last, part=this), found)
        assert not caplog.messages  # it was said which
    words = ["convert", str(last), "-o", str(tmp_path / "a.safetensors"), "--part", "ema"]
    assert main([*words, "--layout", "diffusers" if name == "tiny" else "ldm"]) == 0
    assert same(state_of(tmp_path / "a.safetensors"), written)
    if name == "tiny":  # scale and shift come from the checkpoint, too
        assert [state.first_stage_model.scaling_factor for state in (vae, load_vae(last, part="ema"))] == [0.5, 0.5]
    capsys.readouterr()


def test_a_checkpoint_of_a_trainer_of_one_s_own(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")
    from exact_vae.vae_model.training.kl_module import AutoEncoderKL
    from torch.utils.data import DataLoader

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    module = AutoEncoderKL(**{**TINY["params"], "ema_decay": 0.5})
    trainer = lightning.Trainer(
        max_steps=4, accelerator="cpu", devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    items: Any = list(torch.rand(4, 3, 16, 16) * 2 - 1)
    trainer.fit(module, DataLoader(items, 2), DataLoader(items, 2))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    save(module, tmp_path / "a.safetensors")
    average = state_of(tmp_path / "a.safetensors")
    plain = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    assert not same(average, plain)
    assert same(state_of(module), average)
    for part in ("ema", "model_ema"):
        assert same(state_of(tmp_path / "a.ckpt", part=part), average)
        assert same(state_of(module.state_dict(), part=part, config=GROUPS), average)
    vae = load_vae(tmp_path / "a.ckpt", device="cpu", dtype="float32")
    assert same(vae.first_stage_model.state_dict(), plain)
    (this,) = re.findall(r"part='(\S+)' for these", " ".join(vae.loaded.notes))
    assert same(state_of(tmp_path / "a.ckpt", part=this), plain)


def test_a_model_with_an_average_is_read_and_saved_averaged(tmp_path: Path) -> None:
    model = model_with_average()
    plain, average = plain_and_average(model)
    vae = load_vae(model, device="cpu", dtype="float32")
    assert same(vae.first_stage_model.state_dict(), average)
    assert TAKEN in vae.loaded.notes
    save(model, tmp_path / "a.safetensors")
    assert same(load_file(tmp_path / "a.safetensors"), average)
    assert same(plain_and_average(model)[0], plain)  # it stays as it is
    assert same(vae.first_stage_model.state_dict(), average)  # and the VAE, too
    notes = load_vae(model.state_dict(), device="cpu", dtype="float32", config=GROUPS).loaded.notes
    assert "not their moving average" in notes[0]
    assert same(state_of(model.state_dict(), config=GROUPS), plain)
    assert same(state_of(model.state_dict(), part="ema", config=GROUPS), average)


def test_an_average_that_has_not_moved_is_none(tmp_path: Path) -> None:
    """Weights that were loaded after it was made are what the model is."""
    model, other = model_with_average(steps=0), model_with_average()
    model.load_state_dict(plain_and_average(other)[0], strict=False)
    vae = load_vae(model, device="cpu", dtype="float32")
    assert same(vae.first_stage_model.state_dict(), plain_and_average(other)[0])
    assert TAKEN not in vae.loaded.notes
    assert vae.first_stage_model.encoder.conv_in.weight.data_ptr() == model.encoder.conv_in.weight.data_ptr()
    save(model, tmp_path / "a.safetensors")
    assert same(load_file(tmp_path / "a.safetensors"), plain_and_average(other)[0])


def test_an_engine_without_quant_convolutions() -> None:
    def engine(_: int, ddconfig: dict[str, Any], ema_decay: float) -> AutoencodingEngine:
        halves = {f"{half.lower()}_config": {"target": half, "params": ddconfig} for half in ("Encoder", "Decoder")}
        return AutoencodingEngine(
            **halves, regularizer_config={"target": "DiagonalGaussianRegularizer"}, ema_decay=ema_decay
        )

    model = model_with_average(engine)
    _, average = plain_and_average(model)
    assert same(state_of(model), average)
    assert same(state_of(model.state_dict(), part="ema", config=GROUPS), average)


@pytest.mark.parametrize("where", ["module.", "first_stage_model.", "model.", "_orig_mod.", "vae.module."])
def test_behind_prefixes(where: str, tmp_path: Path) -> None:
    model = model_with_average()
    plain, average = plain_and_average(model)
    torch.save({"state_dict": {f"{where}{key}": t for key, t in model.state_dict().items()}}, tmp_path / "a.ckpt")
    assert same(state_of(tmp_path / "a.ckpt", config=GROUPS), plain)
    assert same(state_of(tmp_path / "a.ckpt", part="ema", config=GROUPS), average)


def test_averages_of_older_checkpoints_and_compiled_models() -> None:
    """Shadows named by the whole model's names, and weights one level below them."""
    model = model_with_average()
    plain, average = plain_and_average(model)
    for inner, shadow in (("model.", ""), ("model.", "model."), ("_orig_mod.", "_orig_mod.")):
        content = {f"{inner}{key}": tensor for key, tensor in plain.items()}
        content |= {f"model_ema.{f'{shadow}{key}'.replace('.', '')}": tensor for key, tensor in average.items()}
        assert same(state_of(content, part="ema", config=GROUPS), average)
        assert same(state_of(content, config=GROUPS), plain)


def test_a_diffusion_model_s_average_is_not_the_autoencoder_s() -> None:
    plain = plain_and_average(model_with_average())[0]
    content = {f"first_stage_model.{key}": tensor for key, tensor in plain.items()}
    content["model_ema.diffusion_modelinput_blocks00weight"] = torch.zeros(4, 4, 3, 3)
    vae = load_vae(content, device="cpu", dtype="float32", config=GROUPS)
    assert not any("average" in note for note in vae.loaded.notes)
    with pytest.raises(VAEFileError, match="expected an autoencoder in 'ema', found first_stage_model"):
        load_vae(content, part="ema", config=GROUPS)


def test_without_an_average_the_advice_is_right() -> None:
    plain = plain_and_average(model_with_average())[0]
    with pytest.raises(VAEFileError, match="found the file itself to be one: leave out the part"):
        load_vae(plain, part="ema", config=GROUPS)
    model = model_with_average()
    averaged = model.state_dict()
    with pytest.raises(VAEFileError, match=r"expected an autoencoder in 'foo', found \., ema: choose one of these"):
        load_vae(averaged, part="foo", config=GROUPS)
    inside = {f"first_stage_model.{key}": tensor for key, tensor in averaged.items()}
    with pytest.raises(VAEFileError, match=r"found first_stage_model, first_stage_model\.ema: choose one of these"):
        load_vae(inside, part="foo", config=GROUPS)
    assert same(state_of(inside, part="first_stage_model.ema", config=GROUPS), plain_and_average(model)[1])
    with pytest.raises(VAEFileError, match="expected an autoencoder in 'foo', found none: leave out the part"):
        load_vae({"weight": torch.ones(3)}, part="foo")
    assert same(state_of(plain, config=GROUPS), plain)
    dictionaries = {"ema": {key: t + 1 for key, t in plain.items()}, **model_with_average().state_dict()}
    assert same(state_of(dictionaries, part="ema", config=GROUPS), dictionaries["ema"])  # a whole name counts first
