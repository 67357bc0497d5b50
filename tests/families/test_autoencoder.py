"""The autoencoding engines: encode, regularise, decode; quant convolutions, chunks, halves and configurations."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from exact_vae.vae_model.families.ldm.autoencoder import (
    AutoencoderKL,
    AutoencodingEngine,
    AutoencodingEngineLegacy,
    build_kl,
)
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.ldm.distribution import (
    DiagonalGaussianDistribution,
    DiagonalGaussianRegularizer,
    IdentityRegularizer,
)
from exact_vae.vae_model.families.ldm.instantiate import instantiate_from_config
from torch import Tensor, nn

CLASSES = {kind.__name__: kind for kind in (Encoder, Decoder, DiagonalGaussianRegularizer)}
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
MODE = {"target": "DiagonalGaussianRegularizer", "params": {"sample": False}}
# float64, the same layers on batches cut differently: sums of the same numbers in another order.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Fixed numbers, and one thread: these tensors are too small to share out."""
    torch.manual_seed(50)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def engine(**regularizer_params: Any) -> AutoencodingEngine:
    return AutoencodingEngine(
        encoder_config={"target": "sgm.modules.diffusionmodules.model.Encoder", "params": DD},
        decoder_config={"target": "sgm.modules.diffusionmodules.model.Decoder", "params": DD},
        regularizer_config={"target": "DiagonalGaussianRegularizer", "params": regularizer_params},
    ).double()


def legacy(**options: Any) -> AutoencodingEngineLegacy:
    return AutoencodingEngineLegacy(**{"embed_dim": 5, "ddconfig": DD, "regularizer_config": MODE} | options).double()


def images(batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, 8, 6, dtype=torch.float64) * 2 - 1


def test_last_layer_is_the_decoders_last_weight() -> None:
    """A13."""
    for model in (engine(), legacy()):
        assert model.get_last_layer() is model.decoder.conv_out.weight


def test_encode_returns_latents_log_or_moments() -> None:
    """A14."""
    model, x = engine(sample=False), images()
    moments = model.encoder(x)
    z = model.encode(x)
    assert isinstance(z, Tensor)
    assert z.equal(moments[:, :3])
    assert z.shape == (2, 3, 4, 3)
    with_log, log = model.encode(x, return_reg_log=True)
    assert with_log.equal(z)
    torch.testing.assert_close(log["kl_loss"], DiagonalGaussianDistribution(moments).kl().mean(), **CLOSE)
    for return_reg_log in (False, True):
        raw, nothing = model.encode(x, return_reg_log, unregularized=True)
        assert raw.equal(moments)
        assert nothing == {}


def test_encode_draws_when_the_regularizer_does() -> None:
    """A14."""
    model, x = engine(), images()
    torch.manual_seed(1)
    first = model.encode(x)
    torch.manual_seed(1)
    assert model.encode(x).equal(first)
    assert not model.encode(x).equal(first)


def test_decode_is_raw_and_passes_keywords_on() -> None:
    """A15."""
    model, z = engine(), 100 * torch.randn(2, 3, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        model.decoder.conv_out.bias.add_(3)
    out = model.decode(z, timesteps=4)
    assert out.equal(model.decoder(z))
    assert out.max() > 1  # not clamped
    seen: dict[str, Any] = {}
    model.decoder.forward = lambda z, **kwargs: seen.update(kwargs) or z
    model.decode(z, timesteps=4)
    assert seen == {"timesteps": 4}


def test_forward_encodes_and_decodes() -> None:
    """A16."""
    model, x = engine(sample=False), images()
    z, reconstruction, log = model(x, timesteps=1)
    assert z.equal(model.encode(x))
    assert reconstruction.equal(model.decode(z))
    assert set(log) == {"kl_loss"}


@pytest.mark.parametrize("package", ["", "sgm.modules.", "ldm.modules.model.", "ldm_patched.x.", "comfy.ldm.y."])
def test_foreign_targets_are_mapped_by_class_name(package: str) -> None:
    """A17."""
    assert type(instantiate_from_config({"target": f"{package}Encoder", "params": DD}, CLASSES)) is Encoder
    assert type(instantiate_from_config({"target": f"{package}Decoder", "params": DD}, CLASSES)) is Decoder
    regularizer = instantiate_from_config({"target": f"{package}DiagonalGaussianRegularizer"}, CLASSES)
    assert isinstance(regularizer, DiagonalGaussianRegularizer)
    assert regularizer.sample


def test_unknown_targets_are_errors_and_placeholders_are_passed() -> None:
    """A17."""
    for placeholder in ("__is_first_stage__", "__is_unconditional__"):
        assert instantiate_from_config(placeholder, CLASSES) is None
    for config in ({"params": {}}, "Encoder", None):
        with pytest.raises(KeyError, match="`target`"):
            instantiate_from_config(config, CLASSES)
    for target in ("os.system", "torch.nn.Linear", "encoder"):
        with pytest.raises(ValueError, match=f"expected a target among .*got '{target}'"):
            instantiate_from_config({"target": target}, CLASSES)


def test_decoder_may_have_its_own_widths() -> None:
    """A18."""
    model = legacy(decoder_ddconfig=DD | {"ch": 2})
    assert [b.out_channels for level in model.decoder.up for b in level.block] == [2, 2, 4, 4]
    assert [b.out_channels for level in model.encoder.down for b in level.block] == [4, 8]
    assert model(images())[1].shape == (2, 3, 8, 6)


@pytest.mark.parametrize(("double_z", "halves"), [(True, 2), (False, 1)])
def test_quant_convolutions_have_embed_dim_channels(double_z: bool, halves: int) -> None:
    """A19."""
    model = AutoencoderKL(5, ddconfig=DD | {"double_z": double_z}).double()
    assert model.quant_conv.weight.shape == (halves * 5, halves * 3, 1, 1)
    assert model.post_quant_conv.weight.shape == (3, 5, 1, 1)
    assert type(model.regularization) is (DiagonalGaussianRegularizer if double_z else IdentityRegularizer)
    z, reconstruction, log = model(images())
    assert z.shape == (2, 5, 4, 3)
    assert reconstruction.shape == (2, 3, 8, 6)
    assert set(log) == ({"kl_loss"} if double_z else set())


def test_quant_convolutions_can_be_left_out() -> None:
    """A19."""
    model = legacy(embed_dim=3, use_quant_conv=False, use_post_quant_conv=False)
    assert {key.split(".")[0] for key in model.state_dict()} == {"encoder", "decoder"}
    x = images()
    assert model.encode(x, unregularized=True)[0].equal(model.encoder(x))
    z = model.encode(x)
    assert model.decode(z).equal(model.decoder(z))


def test_every_parameter_is_handed_out_and_trained() -> None:
    """A20."""
    model = legacy(regularizer_config={"target": "DiagonalGaussianRegularizer"})
    parameters = list(model.get_autoencoder_params())
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters()}
    assert {id(p) for p in model.quant_conv.parameters()} <= {id(p) for p in parameters}
    _, reconstruction, log = model(images())
    (reconstruction.square().mean() + log["kl_loss"]).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias of the keys shifts all scores of a query alike, and softmax does not see it.
    assert [name for name in silent if not name.endswith("attn_1.k.bias")] == []


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, None])
def test_chunks_change_nothing(size: int | None) -> None:
    """A21 and A22."""
    whole, chunked = legacy(), legacy(max_batch_size=size)
    chunked.load_state_dict(whole.state_dict())
    batches: list[int] = []
    chunked.encoder.register_forward_pre_hook(lambda _, args: batches.append(len(args[0])))
    x = images(5)
    z, log = chunked.encode(x, return_reg_log=True)
    expected, expected_log = whole.encode(x, return_reg_log=True)
    torch.testing.assert_close(z, expected, **CLOSE)
    torch.testing.assert_close(log["kl_loss"], expected_log["kl_loss"], **CLOSE)
    torch.testing.assert_close(chunked.decode(z), whole.decode(z), **CLOSE)
    assert max(batches) <= (size or 5)
    assert sum(batches) == 5


def test_the_batch_is_regularised_once() -> None:
    """A21."""
    model = legacy(max_batch_size=2)
    seen: list[tuple[int, ...]] = []
    model.regularization.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    model.encode(images(5))
    assert seen == [(5, 10, 4, 3)]
    moments, log = model.encode(images(5), unregularized=True)
    assert moments.shape == (5, 10, 4, 3)
    assert log == {}
    assert len(seen) == 1


def test_empty_batches_and_bad_sizes() -> None:
    """A21 and A22."""
    model = legacy(max_batch_size=2)
    assert model.encode(images(0)).shape == (0, 5, 4, 3)
    assert model.decode(torch.zeros(0, 5, 4, 3, dtype=torch.float64)).shape == (0, 3, 8, 6)
    with pytest.raises(ValueError, match="max_batch_size: expected a whole number of at least 1 or None, got 0"):
        legacy(max_batch_size=0)


def test_post_quant_convolution_and_keywords() -> None:
    """A22."""
    model, z = legacy(max_batch_size=1), torch.randn(2, 5, 4, 3, dtype=torch.float64)
    expected = model.decoder(model.post_quant_conv(z))
    torch.testing.assert_close(model.decode(z, timesteps=2), expected, **CLOSE)


def test_old_name_of_the_loss_configuration() -> None:
    """A23."""
    loss = {"target": "LPIPSWithDiscriminator"}
    assert AutoencoderKL(5, ddconfig=DD, lossconfig=loss).loss_config == loss
    assert AutoencoderKL(5, ddconfig=DD, loss_config=loss).loss_config == loss
    assert AutoencoderKL(5, ddconfig=DD).loss_config is None
    with pytest.raises(ValueError, match="one of lossconfig and loss_config, got both"):
        AutoencoderKL(5, ddconfig=DD, lossconfig=loss, loss_config=loss)
    with pytest.raises(TypeError, match="image_key"):
        AutoencoderKL(5, ddconfig=DD, image_key="jpg")


def test_the_regularizer_draws_unless_told() -> None:
    """A23."""
    assert AutoencoderKL(5, ddconfig=DD).regularization.sample
    assert not AutoencoderKL(5, ddconfig=DD, sample_posterior=False).regularization.sample


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_model_says_what_is_missing(half: str) -> None:
    model = legacy(parts=(half,))
    assert {key.split(".")[0] for key in model.state_dict()} == (
        {"encoder", "quant_conv"} if half == "encoder" else {"decoder", "post_quant_conv"}
    )
    missing = "decoder" if half == "encoder" else "encoder"
    with pytest.raises(RuntimeError, match=f"expected a model with {missing}, got half a model"):
        model.decode(torch.zeros(1, 5, 2, 2)) if missing == "decoder" else model.encode(images())


def test_build_kl_encodes_to_the_mean() -> None:
    levels = LevelsConfig(ch=8, widths=(8, 16), num_res_blocks=1, attn_levels=(1,))
    config = KLConfig(z_channels=3, embed_dim=4, encoder=levels, decoder=levels, num_groups=8)
    model = build_kl(config)
    assert isinstance(model.regularization, DiagonalGaussianRegularizer)
    assert not model.regularization.sample
    assert [len(level.attn) for level in model.encoder.down] == [0, 1]
    assert [len(level.attn) for level in model.decoder.up] == [0, 2]
    assert {layer.num_groups for layer in model.modules() if isinstance(layer, nn.GroupNorm)} == {8}
    assert build_kl(config, sample_posterior=True).regularization.sample
