"""Models in memory given to load_vae and save: of ours, of diffusers, of trainings, halves, wrapped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import InputError, load_vae, save
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL, AutoencodingEngine
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

DD: dict[str, Any] = {
    "ch": 8,
    "out_ch": 3,
    "in_channels": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "z_channels": 4,
    "resolution": 32,
    "num_groups": 4,
}


def shaken(model: Any, by: float = 0.2) -> Any:
    """Norms that do something."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data += by * torch.randn(p.shape, generator=generator)
    return model.eval()


def loaded(given: Any, **options: Any) -> Any:
    return load_vae(given, device="cpu", dtype="float32", **options)


def assert_runs_as(vae: Any, model: Any, channels: int = 4, factor: int = 2) -> None:
    """Against the module's own encode and decode."""
    x, z = torch.rand(1, 8 * factor, 6 * factor, 3), torch.randn(1, channels, 8, 6)
    with torch.no_grad():
        decoded, moments = model.decode(z), model.encode(x.movedim(-1, 1) * 2 - 1, unregularized=True)[0]
    assert_exact(vae.decode(z), ((decoded + 1) / 2).clamp(0, 1).movedim(1, -1))
    assert_exact(vae.encode(x), moments[:, :channels])


@pytest.mark.parametrize("changes", [{}, {"tanh_out": True}, {"num_groups": 2}, {"resamp_with_conv": False}])
def test_an_autoencoder_kl(changes: dict[str, Any]) -> None:
    model = shaken(AutoencoderKL(4, {**DD, **changes}))
    assert_runs_as(loaded(model), model)


def test_an_engine_without_quant_convolutions() -> None:
    parts = [{"target": name, "params": DD} for name in ("Encoder", "Decoder")]
    regularizer = {"target": "DiagonalGaussianRegularizer"}
    model = shaken(AutoencodingEngine(encoder_config=parts[0], decoder_config=parts[1], regularizer_config=regularizer))
    assert_runs_as(loaded(model), model)


@pytest.mark.parametrize("name", ["SD3, Flux.1", "Flux.2", "VQ-f4", "Wan 2.1, Qwen-Image", "TAESD, TAESDXL"])
def test_every_family(name: str) -> None:
    row = ROWS[name]
    model = random_model(row)
    vae = loaded(model)
    z = torch.randn(1, row.channels, 4, 3)
    assert vae.loaded.family == row.family
    with torch.no_grad():
        expected = model.decode(z)
    expected = expected if isinstance(expected, Tensor) else expected[0]
    assert_exact(vae.decode(z), ((expected + 1) / 2).clamp(0, 1).movedim(1, -1))


def test_the_model_stays_as_it_is_and_shares_its_weights() -> None:
    model = AutoencoderKL(4, DD).train()
    vae = loaded(model)
    assert model.training
    assert not vae.first_stage_model.training
    assert all(p.requires_grad for p in model.parameters())
    z = torch.randn(1, 4, 4, 4)
    before = vae.decode(z)
    with torch.no_grad():
        model.decoder.conv_out.weight.mul_(3)  # a step of a training
    assert not vae.decode(z).equal(before)
    half = load_vae(model, device="cpu", dtype="bfloat16").first_stage_model
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_wrapped_models() -> None:
    model = shaken(AutoencoderKL(4, DD))
    for wrapped in (torch.compile(model), nn.DataParallel(model)):
        assert_runs_as(loaded(wrapped), model)


def test_a_tiny_model_with_its_settings_and_latents() -> None:
    model = shaken(AutoencoderTiny(act_fn="silu", upsample_fn="bilinear", decoder_block_out_channels=(8,) * 4), 0.02)
    vae = loaded(model, latent_format="sd")
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = model.decode(z * 0.18215).sample
    assert_exact(vae.decode(z), ((expected + 1) / 2).clamp(0, 1).movedim(1, -1))


def test_diffusers_autoencoder_kl(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    model = shaken(
        diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            layers_per_block=1,
        )
    )
    x, z = torch.rand(1, 16, 12, 3), torch.randn(1, 4, 8, 6)
    with torch.no_grad():
        decoded, mean = model.decode(z).sample, model.encode(x.movedim(-1, 1) * 2 - 1).latent_dist.mean
    save(model, tmp_path / "a.safetensors")
    for vae in (loaded(model), loaded(tmp_path / "a.safetensors")):
        assert_exact(vae.decode(z), ((decoded + 1) / 2).clamp(0, 1).movedim(1, -1))
        assert_exact(vae.encode(x), mean)


def test_diffusers_autoencoder_tiny() -> None:
    diffusers = pytest.importorskip("diffusers")
    model = shaken(diffusers.AutoencoderTiny(act_fn="silu", decoder_block_out_channels=(8,) * 4), 0.02)
    z = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        expected = model.decode(z).sample
    assert_exact(loaded(model, latent_format="raw").decode(z), ((expected + 1) / 2).clamp(0, 1).movedim(1, -1))


def test_a_training_s_module_gives_its_averaged_weights() -> None:
    pytest.importorskip("lightning")
    from exact_vae.vae_model.training.kl_module import AutoEncoderKL

    module: Any = AutoEncoderKL(DD, 4, ema_decay=0.5)
    shaken(module.model)
    module.configure_model()
    kept = {key: tensor.clone() for key, tensor in module.model.state_dict().items()}
    with torch.no_grad():
        module.model.decoder.conv_out.weight.mul_(5)
        vae = loaded(module)
        with module.finished() as whole:
            expected = {key: tensor.clone() for key, tensor in whole.state_dict().items()}
    assert not expected["decoder.conv_out.weight"].equal(5 * kept["decoder.conv_out.weight"])
    found = vae.first_stage_model.state_dict()
    assert all(found[key].equal(expected[key]) for key in found)


HALVES = [
    (Encoder(**DD), "encode"),
    (Encoder(**{**DD, "double_z": False}), "encode"),
    (Decoder(**DD), "decode"),
    (Decoder(**{**DD, "tanh_out": True}), "decode"),
]


@pytest.mark.parametrize(("half", "what"), HALVES, ids=["encoder", "single z", "decoder", "tanh"])
def test_half_a_model_is_saved_and_loaded_as_one(half: Any, what: str, tmp_path: Path) -> None:
    shaken(half)
    path = tmp_path / "half.safetensors"
    save(half, path)
    for vae in (loaded(half), loaded(path)):
        if what == "encode":
            x = torch.rand(1, 16, 12, 3)
            with torch.no_grad():
                assert_exact(vae.encode(x), half(x.movedim(-1, 1) * 2 - 1)[:, :4])
        else:
            z = torch.randn(1, 4, 8, 6)
            with torch.no_grad():
                assert_exact(vae.decode(z), ((half(z) + 1) / 2).clamp(0, 1).movedim(1, -1))


@pytest.mark.parametrize("given", [nn.Linear(2, 2), nn.Sequential(nn.Conv2d(3, 1, 3))])
def test_modules_that_are_no_autoencoders(given: nn.Module) -> None:
    line = (
        f"^load_vae: expected a VAE of load_vae, its model or a training's module, got {type(given).__name__}, which "
    )
    with pytest.raises(InputError, match=line):
        loaded(given)


def test_a_model_that_computes_something_else_than_it_tells() -> None:
    model = AutoencoderKL(4, DD)
    model.decoder.mid.block_1 = nn.Sequential(model.decoder.mid.block_1, nn.Tanh())
    with pytest.raises((InputError, ValueError), match=r"^[^\n]*expected [^\n]*$"):
        loaded(model)
    model = AutoencoderKL(4, DD)
    model.decoder.conv_in.padding_mode = "circular"
    with pytest.raises(InputError, match=r"would be read with decoder\.conv_in"):
        loaded(model)
