"""The requirements A12-A25 on the engines, one test for each at least; A01-A11 are in families/test_engine_base.py.

Beside these: A12's arguments for training (a discriminator's optimiser and the like) belong to a trainer, not to the
engine, which keeps `loss_config` for it; positional arguments are not taken. A24's host class is VAE.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, load_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.families.ldm.autoencoder import (
    AutoencoderKL,
    AutoencodingEngine,
    AutoencodingEngineLegacy,
)
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.ldm.distribution import DiagonalGaussianRegularizer
from exact_vae.vae_model.families.ldm.instantiate import instantiate_from_config
from exact_vae.vae_model.families.ldm.unet import Model
from torch import Tensor, nn

DD: dict[str, Any] = {
    "ch": 4,
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "in_channels": 3,
    "resolution": 32,
    "z_channels": 3,
    "num_groups": 2,
}
# float64, the same layers on batches cut differently: sums of the same numbers in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(80)


def kl(**options: Any) -> AutoencoderKL:
    return AutoencoderKL(5, ddconfig=DD, **{"sample_posterior": False} | options).double()


def engine(**options: Any) -> AutoencodingEngine:
    return AutoencodingEngine(
        encoder_config={"target": "sgm.modules.diffusionmodules.model.Encoder", "params": DD},
        decoder_config={"target": "ldm_patched.ldm.modules.diffusionmodules.model.Decoder", "params": DD},
        regularizer_config={"target": "comfy.x.DiagonalGaussianRegularizer", "params": {"sample": False}},
        **options,
    ).double()


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 8, 6, dtype=torch.float64) * 2 - 1


def test_an_engine_is_three_configurations() -> None:
    """A12."""
    model = engine(loss_config={"target": "loss"})
    assert [type(part).__name__ for part in model.children()] == ["Encoder", "Decoder", "DiagonalGaussianRegularizer"]
    assert model.loss_config == {"target": "loss"}


def test_the_last_layer_is_a_weight() -> None:
    """A13."""
    for model in (engine(), kl()):
        assert model.get_last_layer() is model.decoder.conv_out.weight


def test_encode_returns_latents_log_or_moments() -> None:
    """A14."""
    model, x = engine(), images()
    z, log = model.encode(x, return_reg_log=True)
    assert z.shape == (2, 3, 4, 3)
    assert set(log) == {"kl_loss"}
    assert model.encode(x).equal(z)
    for return_reg_log in (False, True):
        moments, nothing = model.encode(x, return_reg_log, unregularized=True)
        assert moments.equal(model.encoder(x))
        assert nothing == {}


def test_decode_is_raw() -> None:
    """A15."""
    model = engine()
    with torch.no_grad():
        model.decoder.conv_out.bias.fill_(7)
    z = torch.randn(1, 3, 4, 3, dtype=torch.float64)
    out = model.decode(z, timesteps=1)
    assert out.equal(model.decoder(z))
    assert out.max() > 1


def test_forward_returns_three_things() -> None:
    """A16."""
    model, x = engine(), images()
    z, reconstruction, log = model(x)
    assert z.equal(model.encode(x))
    assert reconstruction.equal(model.decode(z))
    assert set(log) == {"kl_loss"}


def test_old_configurations_name_our_classes_and_run_nothing_else() -> None:
    """A17."""
    assert [type(part) for part in engine().children()] == [Encoder, Decoder, DiagonalGaussianRegularizer]
    params = {"embed_dim": 5, "monitor": "val/rec_loss", "ddconfig": DD, "lossconfig": {"target": "torch.nn.Identity"}}
    for target in ("ldm.models.autoencoder.AutoencoderKL", "sgm.models.autoencoder.AutoencoderKLInferenceWrapper"):
        model = instantiate_from_config({"target": target, "params": params})
        assert type(model) is AutoencoderKL
        assert model.loss_config == {"target": "torch.nn.Identity"}
    unet = {"ch": 32, "out_ch": 3, "num_res_blocks": 1, "in_channels": 3, "ch_mult": (1,)}
    made = instantiate_from_config({"target": "ldm.modules.diffusionmodules.model.Model", "params": unet})
    assert type(made) is Model
    assert instantiate_from_config("__is_first_stage__") is None
    with pytest.raises(KeyError, match="`target`"):
        instantiate_from_config({"params": {}})
    with pytest.raises(ValueError, match=r"got 'os.system'"):
        instantiate_from_config({"target": "os.system", "params": {"command": "true"}})


def test_the_decoder_may_have_its_own_configuration() -> None:
    """A18."""
    model = AutoencodingEngineLegacy(
        5,
        ddconfig=DD,
        decoder_ddconfig=DD | {"ch": 2},
        regularizer_config={"target": "DiagonalGaussianRegularizer"},
        max_batch_size=2,
    ).double()
    assert (model.encoder.ch, model.decoder.ch, model.max_batch_size) == (4, 2, 2)
    assert model(images())[1].shape == (2, 3, 8, 6)


@pytest.mark.parametrize(("double_z", "halves"), [(True, 2), (False, 1)])
def test_quant_convolutions_have_embed_dim(double_z: bool, halves: int) -> None:
    """A19."""
    model = AutoencoderKL(5, ddconfig=DD | {"double_z": double_z})
    assert model.quant_conv.weight.shape == (halves * 5, halves * 3, 1, 1)
    assert model.post_quant_conv.weight.shape == (3, 5, 1, 1)


class Loss(nn.Module):
    """A learned log-variance, which is trained with the autoencoder, and a discriminator, which is not."""

    def __init__(self) -> None:
        super().__init__()
        self.logvar, self.discriminator = nn.Parameter(torch.zeros(())), nn.Linear(2, 2)

    def get_trainable_autoencoder_parameters(self) -> Iterator[nn.Parameter]:
        yield self.logvar


def test_parameters_of_the_autoencoder_and_of_nothing_else() -> None:
    """A20."""
    model = kl(ema_decay=0.5)
    model.scale = nn.Parameter(torch.ones(()))
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in model.get_autoencoder_params()} == own
    assert {id(model.quant_conv.weight), id(model.post_quant_conv.bias)} <= own
    model.loss = Loss()
    parameters = list(model.get_autoencoder_params())
    assert {id(parameter) for parameter in parameters} == own | {id(model.loss.logvar)}
    assert len(parameters) == len(own) + 1
    model.loss = nn.Linear(2, 2)
    assert {id(parameter) for parameter in model.get_autoencoder_params()} == own


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_chunked_encoding_equals_the_whole(size: int) -> None:
    """A21."""
    whole, chunked = kl(), kl(max_batch_size=size)
    chunked.load_state_dict(whole.state_dict())
    sizes: list[int] = []
    chunked.encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    regularised: list[int] = []
    chunked.regularization.register_forward_pre_hook(lambda _, args: regularised.append(len(args[0])))
    x = images(5)
    (z, log), (expected, expected_log) = (model.encode(x, return_reg_log=True) for model in (chunked, whole))
    torch.testing.assert_close(z, expected, **CLOSE)
    torch.testing.assert_close(log["kl_loss"], expected_log["kl_loss"], **CLOSE)
    moments, nothing = chunked.encode(x, unregularized=True)
    torch.testing.assert_close(moments, whole.encode(x, unregularized=True)[0], **CLOSE)
    assert nothing == {}
    assert max(sizes) <= size
    assert regularised == [5]  # once for a batch, not once for a chunk
    assert chunked.encode(images(0)).shape == (0, 5, 4, 3)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6])
def test_chunked_decoding_equals_the_whole(size: int) -> None:
    """A22."""
    whole, chunked = kl(), kl(max_batch_size=size)
    chunked.load_state_dict(whole.state_dict())
    z = torch.randn(5, 5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(chunked.decode(z), whole.decode(z), **CLOSE)
    assert chunked.decode(z[:0]).shape == (0, 3, 8, 6)


def test_frames_of_one_group_stay_in_one_chunk() -> None:
    """A22."""
    model = kl(max_batch_size=5)
    sizes: list[int] = []
    model.decoder.forward = lambda z, timesteps=None: sizes.append(len(z)) or z
    model.decoder.time_mode = "conv-only"  # as a temporal decoder says of itself
    z = torch.randn(8, 5, 4, 3, dtype=torch.float64)
    model.decode(z, timesteps=2)
    assert sizes == [4, 4]
    for options in ({}, {"timesteps": 8}):
        with pytest.raises(ValueError, match="at least the 8 frames of one group, got 5: raise it"):
            model.decode(z, **options)
    model.decode(z[:5])
    assert sizes == [4, 4, 5]


def test_the_loss_has_two_names_and_one_place() -> None:
    """A23."""
    loss = {"target": "LPIPSWithDiscriminator"}
    assert kl(lossconfig=loss).loss_config == kl(loss_config=loss).loss_config == loss
    assert isinstance(kl().regularization, DiagonalGaussianRegularizer)
    with pytest.raises(ValueError, match="one of lossconfig and loss_config, got both"):
        kl(lossconfig=loss, loss_config=loss)


def test_out_of_memory_never_ends_in_tiles(small_vae: VAE, small_model: nn.Module) -> None:
    """A24."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(1, 4, 12, 9, generator=generator) + torch.linspace(-3, 3, 9)
    with torch.inference_mode():
        raw = small_model.decode(z)
    small_vae.memory_limit = 8 * 2**20
    image = small_vae.decode(z)
    assert small_vae.last_report.exact
    assert image.shape == (1, 96, 72, 3)
    expected = ((raw + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(image, expected, rtol=0, atol=2e-5)  # the project's bound, on a range of 1


def test_fresh_weights_are_numbers_and_loading_is_strict(
    small_file: Path, state: dict[str, Tensor], tmp_path: Path
) -> None:
    """A25."""
    with torch.no_grad():
        torch.empty(10**6).fill_(4e30)  # what uninitialised memory would show
    for tensor in kl().state_dict().values():
        assert tensor.abs().max() <= 1
        assert tensor.std(unbiased=False) > 0 or tensor.eq(0).all() or tensor.eq(1).all()
    assert load_vae(small_file, device="cpu").latent_channels == 4
    state.pop("decoder.mid.block_1.conv1.weight")
    state["decoder.mid.block_1.conv3.weight"] = torch.zeros(1)
    with pytest.raises(VAEFileError) as caught:
        load_model(state)
    assert "missing decoder.mid.block_1.conv1.weight" in str(caught.value)
    assert "unknown decoder.mid.block_1.conv3.weight" in str(caught.value)
