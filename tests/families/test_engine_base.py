"""The requirements A01-A11 on what engines share, one test for each at least. A12-A25: families/test_engines.py.

The moving average of A09 has more tests of its own: families/test_ema.py.
"""

import logging
import math
from typing import Any

import pytest
import torch
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL, AutoencodingEngine, build_kl
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.ldm.distribution import DiagonalGaussianDistribution, DiagonalGaussianRegularizer
from exact_vae.vae_model.families.ldm.ema import LitEma
from exact_vae.vae_model.families.ldm.engine import AbstractAutoencoder
from exact_vae.vae_model.families.ldm.instantiate import OPTIMIZERS, instantiate_optimizer
from exact_vae.vae_model.families.table import decoder_of
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


def step(model: AbstractAutoencoder) -> None:
    """What a trainer does with a batch: move the weights, then say so."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.on_train_batch_end(None, None, 0)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(tensor.equal(other[name]) for name, tensor in one.items())


def test_the_class_draws_by_default_and_inference_takes_the_mean() -> None:
    """A01."""
    z = torch.randn(1, 4, 2, 2)
    draw = DiagonalGaussianRegularizer()
    assert not draw(z)[0].equal(draw(z)[0])
    assert DiagonalGaussianRegularizer(sample=False)(z)[0].equal(z[:, :2])
    levels = LevelsConfig(ch=4, widths=(4, 4), num_res_blocks=1)
    assert not build_kl(KLConfig(3, 3, levels, levels, num_groups=2)).regularization.sample


def test_the_regularizer_has_nothing_to_train() -> None:
    """A02."""
    assert list(DiagonalGaussianRegularizer().get_trainable_parameters()) == []


def test_kl_is_summed_over_an_image_and_averaged_over_the_batch() -> None:
    """A03."""
    z = torch.zeros(2, 4, 3, 5)
    z[0, :2] = 2.0  # a mean of 2 costs 2 nats for each of 30 numbers, in one image of two
    for reduction, expected in (("sum", 30.0), ("mean", 1.0)):
        for sample in (True, False):
            _, log = DiagonalGaussianRegularizer(sample, reduction)(z)
            assert {key: float(value) for key, value in log.items()} == {"kl_loss": expected}


def test_the_distribution_clamps_draws_and_measures() -> None:
    """A04."""
    z = torch.tensor([1.0, -1000.0, 1000.0]).reshape(1, 3, 1, 1)
    assert DiagonalGaussianDistribution(torch.cat([z, z], 1)).logvar.flatten().tolist() == [1, -30, 20]
    fixed = DiagonalGaussianDistribution(torch.randn(3, 4, 2, 2), deterministic=True)
    assert fixed.kl().equal(torch.zeros(3))
    assert fixed.sample().equal(fixed.mode())
    free = DiagonalGaussianDistribution(torch.zeros(2, 4, 2, 2).bfloat16())
    draws = [free.sample(torch.Generator().manual_seed(1)) for _ in range(2)]
    assert draws[0].equal(draws[1])
    assert draws[0].dtype == torch.bfloat16
    standard = DiagonalGaussianDistribution(torch.zeros(1, 2, 1, 1))
    assert standard.nll(torch.zeros(1, 1, 1, 1)).item() == pytest.approx(0.5 * math.log(2 * math.pi), rel=1e-6)


def test_the_average_is_made_when_every_sub_module_exists() -> None:
    """A05."""
    plain = engine()
    assert (plain.use_ema, plain.input_key) == (False, "jpg")
    assert not hasattr(plain, "monitor")
    assert not hasattr(plain, "model_ema")
    for model in (engine(ema_decay=0.5), kl(ema_decay=0.5, monitor="val/rec_loss", input_key="png")):
        assert isinstance(model.model_ema, LitEma)
        assert set(model.model_ema.m_name2s_name) == set(weights(model))  # quant convolutions, too
        assert model.use_ema
    assert (model.monitor, model.input_key) == ("val/rec_loss", "png")

    class Larger(AutoencoderKL):
        def __init__(self) -> None:
            super().__init__(5, ddconfig=DD, ema_decay=0.5)
            self.head = nn.Linear(2, 2)

    assert "head.weight" in Larger().model_ema.m_name2s_name


def test_unknown_keywords_are_refused() -> None:
    """A05."""
    for make in (engine, kl):
        with pytest.raises(TypeError, match="ema_dekay"):
            make(ema_dekay=0.5)


def test_get_input_takes_the_images_of_a_batch() -> None:
    """A06."""
    model, x = kl(input_key="image"), images()
    assert model.get_input(x) is x
    assert model.get_input({"image": x, "txt": ["a", "b"]}) is x
    wrong = {
        "expected an entry 'image', got jpg: set input_key": {"jpg": x},
        "floating point tensor in -1..1, got torch.uint8": x.byte(),
        "floating point tensor in -1..1, got list": {"image": [x]},
        r"expected \(B, 3, H, W\), got \(2, 8, 6, 3\): put channels before rows": x.movedim(1, -1),
        r"expected \(B, 3, H, W\), got \(3, 8, 6\)": x[0],
        "values in -1..1, got -255 to 255: scale them": torch.full_like(x, 255) * x.sign(),
        "values in -1..1, got nan": x * math.nan,
    }
    for message, batch in wrong.items():
        with pytest.raises(InputError, match=message):
            model.get_input(batch)
    assert AbstractAutoencoder().get_input(images()[:, :1]).shape == (2, 1, 8, 6)


def test_on_train_batch_end_moves_the_average() -> None:
    """A07."""
    model, before = kl(ema_decay=0.5), None
    for number in (1, 2):
        before = model.model_ema.get_buffer("encoderconv_inweight").clone()
        step(model)
        d = min(0.5, (1 + number) / (10 + number))
        expected = before - (1 - d) * (before - model.encoder.conv_in.weight)
        # d is float32, as in the original: 3e-8 of steps around 0.1.
        torch.testing.assert_close(model.model_ema.get_buffer("encoderconv_inweight"), expected, rtol=0, atol=1e-8)
    assert int(model.model_ema.num_updates) == 2
    model = kl()
    step(model)  # no average, nothing happens
    assert not hasattr(model, "model_ema")


def test_ema_scope_is_reentrant_and_exception_safe(caplog: pytest.LogCaptureFixture) -> None:
    """A08."""
    model = kl(ema_decay=0.5)
    step(model)
    live = weights(model)
    averaged = {name: model.model_ema.get_buffer(name.replace(".", "")) for name in live}
    with caplog.at_level(logging.INFO), model.ema_scope():
        assert same(weights(model), averaged)
        with model.ema_scope("inner"):
            assert same(weights(model), averaged)
        assert same(weights(model), averaged)
    assert same(weights(model), live)
    assert caplog.messages == ["inner: using the averaged weights", "inner: back to the training weights"]
    with pytest.raises(ZeroDivisionError), model.ema_scope(), model.ema_scope():
        _ = 1 / 0
    assert same(weights(model), live)
    del model.post_quant_conv  # the shadows do not fit any more: switching itself fails
    live = weights(model)
    with pytest.raises(ValueError, match="without post_quant_conv"), model.ema_scope():
        pass
    assert same(weights(model), live)
    assert not model.model_ema._stored
    with kl().ema_scope("off"):
        assert "off: using the averaged weights" not in caplog.messages


def test_decays_and_buffer_names() -> None:
    """A09."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
    model[1].bias.requires_grad_(False)
    ema = LitEma(model)
    assert set(ema.state_dict()) == {"decay", "num_updates", "0weight", "0bias", "1weight"}
    with torch.no_grad():
        model[0].weight.zero_()
        ema.get_buffer("0weight").fill_(1)
    product = 1.0
    for decay in (2 / 11, 3 / 12, 4 / 13):
        ema(model)
        product *= decay
        assert float(ema.get_buffer("0weight")) == pytest.approx(product, rel=1e-6)  # float32


def test_averaged_weights_stay_out_of_files_and_load_back() -> None:
    """A09."""
    model = kl(ema_decay=0.5).eval()
    step(model)
    assert decoder_of(model).program.ops  # the exact engine passes over them
    assert not any("ema" in key for key in to_layout(model, "ldm"))
    again = kl(ema_decay=0.5)
    again.load_state_dict(model.state_dict())
    with model.ema_scope(), again.ema_scope():
        assert same(weights(model), weights(again))


def test_what_subclasses_write() -> None:
    """A10."""
    model = AbstractAutoencoder()
    for name in ("encode", "decode", "configure_optimizers"):
        with pytest.raises(NotImplementedError, match=f"AbstractAutoencoder: expected .*{name.split('_')[0]}"):
            getattr(model, name)()
    with pytest.raises(NotImplementedError, match="AutoencoderKL"):
        kl().configure_optimizers()


def test_optimizers_come_from_an_allow_list(monkeypatch: pytest.MonkeyPatch) -> None:
    """A11."""
    model = kl()
    config = {"target": "torch.optim.Adam", "params": {"betas": (0.5, 0.9)}}
    optimizer = model.instantiate_optimizer_from_config(model.get_autoencoder_params(), 1e-3, config)
    assert type(optimizer) is torch.optim.Adam
    assert (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"]) == (1e-3, (0.5, 0.9))
    assert {"torch.optim.SGD", "torch.optim.AdamW"} <= OPTIMIZERS.keys()
    assert "torch.optim.Optimizer" not in OPTIMIZERS
    for target in ("os.system", "Adam", "torch.optim.lr_scheduler.StepLR", "evil.Adam"):
        with pytest.raises(ValueError, match=rf"a target among .*torch.optim.Adam, .*got '{target}'"):
            instantiate_optimizer(model.parameters(), 1e-3, {"target": target})
    with pytest.raises(KeyError, match="`target`"):
        instantiate_optimizer(model.parameters(), 1e-3, {})
    monkeypatch.setitem(OPTIMIZERS, "mine.Half", lambda params, lr: torch.optim.SGD(params, lr=lr / 2))
    mine = instantiate_optimizer(model.parameters(), 1.0, {"target": "mine.Half"})
    assert mine.param_groups[0]["lr"] == 0.5
