"""What was once built, or ran, without a word: refused in one line, or told; and calls that ended in PyTorch's."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_vae import VAE, InputError, load_vae, vae_model
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("one_thread")

NOTES = "exact_vae.vae_model.notes"
DD: dict[str, Any] = {
    "ch": 8, "out_ch": 3, "in_channels": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "resolution": 32,
    "num_groups": 4,
}  # fmt: skip


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(InputError, match=r"^[^\n]*: expected [^\n]*, got [^\n]*: [^\n]+$") as caught:
        call()
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", ["no", "yes", "false", None, 2, [True]])
def test_switches_of_layers(value: Any) -> None:
    """Every argument whose default is True or False, of the classes that people build networks of."""
    owners: dict[str, dict[str, Any]] = {
        "Upsample": {"in_channels": 3},
        "Downsample": {"in_channels": 3},
        "ResnetBlock": {"in_channels": 32},
        "DiagonalGaussianRegularizer": {},
        "DiagonalGaussianDistribution": {"parameters": torch.zeros(1, 8, 2, 2)},
        "Encoder": DD,
        "Decoder": DD,
        "Model": {name: item for name, item in DD.items() if name != "z_channels"},
        "AutoencoderKL": {"embed_dim": 4, "ddconfig": DD},
        "LitEma": {"model": nn.Linear(2, 2)},
        "AutoencoderTiny": {},
        "AutoencoderTinyBlock": {"in_channels": 8, "out_channels": 8},
        "EncoderTiny": {"in_channels": 3, "out_channels": 4, "num_blocks": (1,), "block_out_channels": (8,),
                        "act_fn": "relu"},
        "DecoderTiny": {"in_channels": 4, "out_channels": 3, "num_blocks": (1,), "block_out_channels": (8,),
                        "upsampling_scaling_factor": 2, "act_fn": "relu", "upsample_fn": "nearest"},
    }  # fmt: skip
    seen = 0
    for owner, arguments in owners.items():
        make: Any = getattr(vae_model, owner)
        for name, parameter in inspect.signature(make.__init__).parameters.items():
            if isinstance(parameter.default, bool):
                refused(lambda: make(**{**arguments, name: value}), f"{name}: expected True or False, got ")  # noqa: B023
                seen += 1
    assert seen >= 23


def test_names_and_numbers_of_layers() -> None:
    kl: Any = vae_model.AutoencoderKL
    for value in (3, ["val/psnr"], True):
        refused(lambda: kl(4, DD, monitor=value), "AutoencoderKL: monitor: expected text or None, got ")  # noqa: B023
        refused(lambda: kl(4, DD, input_key=value), "AutoencoderKL: input_key: expected text, got ")  # noqa: B023
    refused(lambda: kl(4, DD, parts=("encoders",)), "AutoencoderKL: parts: expected encoder, decoder or both, got ")
    block: Any = vae_model.ResnetBlock
    refused(
        lambda: block(in_channels="32"), "ResnetBlock: in_channels: expected a whole number of at least 1, got '32'"
    )
    refused(lambda: block(in_channels=32, dropout="0.1"), "ResnetBlock: dropout: expected a number of 0..1, got '0.1'")
    norm: Any = vae_model.Normalize
    refused(lambda: norm(32, 0), "Normalize: num_groups: expected a whole number of at least 1, got 0")
    make: Any = vae_model.make_attn
    refused(
        lambda: make(32, attn_kwargs={"heads": 2}), "make_attn: expected num_groups alone in attn_kwargs, got heads"
    )
    refused(lambda: make(32, attn_kwargs=5), "make_attn: attn_kwargs: expected names with values or None, got 5")
    for kind in ("vanilla", "linear", "none"):
        refused(lambda: make("32", kind), "make_attn: in_channels: expected a whole number of at least 1, got '32'")  # noqa: B023
    assert make(32, attn_kwargs={"num_groups": 8}).norm.num_groups == 8


def test_a_kl_without_variances_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, NOTES):
        vae_model.AutoencoderKL(4, DD)
        assert not caplog.records
        model = vae_model.AutoencoderKL(4, {**DD, "double_z": False})
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "double_z is False, hence no variances and no KL" in caplog.text
        caplog.clear()
        load_vae(model.state_dict(), device="cpu", dtype="float32", config={"norm_num_groups": 4})  # shapes tell it
        assert "double_z" not in caplog.text


def test_attention_that_no_level_has_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, NOTES):
        vae_model.Encoder(**{**DD, "attn_resolutions": [32, 16]})
        assert not caplog.records
        vae_model.Decoder(**{**DD, "attn_resolutions": [16, 8]})
    line = "Decoder: attn_resolutions [8] add no attention: with resolution 32 the levels have [16, 32]"
    assert [record.getMessage() for record in caplog.records] == [line]


def test_images_of_0_to_1_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    model = vae_model.AutoencoderKL(4, DD)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO, NOTES):
        model.get_input(x * 2 - 1)
        assert not caplog.records
        assert model.get_input(x) is x
        model.get_input(x)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "images: expected values in -1..1, got " in caplog.text
    assert "if 0 is black in them, pass x * 2 - 1" in caplog.text


def test_cropped_pixels_are_told(small_vae: VAE, caplog: pytest.LogCaptureFixture) -> None:
    x = torch.rand(1, 27, 33, 3, generator=torch.Generator().manual_seed(0))
    with caplog.at_level(logging.INFO, NOTES):
        z = small_vae.encode(x)
        assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
            ("INFO", "pixels: 33 x 27 are cropped to 32 x 24, whole cells of 8 pixels")
        ]
        caplog.clear()
        assert torch.equal(small_vae.encode(x[:, 1:25, :32]), z)
    assert not caplog.records


def test_attention_of_other_things() -> None:
    q = torch.rand(1, 16, 8, generator=torch.Generator().manual_seed(0))
    line = "attention: expected q, k and v of one float dtype, got "
    for name in ("normal_attention", "pytorch_attention", "slice_attention"):
        attend: Any = getattr(vae_model, name)
        found = "torch.float32, torch.float16, torch.float32"
        refused(lambda: attend(q, q.half(), q), line + found)  # noqa: B023
        refused(lambda: attend(q, q, q.double()), line)  # noqa: B023
        refused(lambda: attend(q, None, q), f"{line}torch.float32, nothing, torch.float32")  # noqa: B023
        refused(lambda: attend(q.long(), q.long(), q.long()), line)  # noqa: B023
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert vae_model.normal_attention(*[q.to(dtype)] * 3).dtype == dtype


def test_posteriors() -> None:
    make: Any = vae_model.DiagonalGaussianDistribution
    moments = torch.randn(2, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    one = make(moments)
    refused(lambda: make(moments.long()), "posterior: expected moments (B, 2C, ...), got torch.int64")
    refused(lambda: one.sample(5), "generator: expected a torch.Generator or None, got 5")
    for other in (5, moments, make(moments[:, :6])):
        refused(lambda: one.kl(other), "kl: other: expected the mean's shape, (2, 4, 4, 4), got ")  # noqa: B023
    for sample in (None, moments[:, :3], moments[0]):
        refused(lambda: one.nll(sample), "nll: sample: expected the mean's shape, (2, 4, 4, 4), got ")  # noqa: B023
    for dims in (5, "a"):
        refused(lambda: one.nll(moments[:, :4], dims), "nll: dims: expected a list of axes or None, got ")  # noqa: B023
    prior = make(torch.zeros(1, 8, 4, 4))  # one for all is spread over the batch
    torch.testing.assert_close(one.kl(prior), one.kl(), rtol=1e-5, atol=1e-5)
    assert one.nll(moments[:1, :4]).shape == (2,)


def test_optimizers() -> None:
    model: Any = vae_model.AutoencoderKL(4, DD)
    adam = {"target": "torch.optim.AdamW"}

    def call(lr: Any, config: Any, parameters: Any = None) -> Any:
        given = list(model.parameters()) if parameters is None else parameters
        return model.instantiate_optimizer_from_config(given, lr, config)

    line = "optimizer configuration: "
    for rate in ("1e-4", None, -1, float("nan")):
        refused(lambda: call(rate, adam), f"{line}lr: expected a finite number of at least 0, got ")  # noqa: B023
    for config in (None, 5, "torch.optim.AdamW"):
        refused(lambda: call(1e-4, config), f"{line}cfg: expected names with values, got ")  # noqa: B023
    refused(lambda: call(1e-4, {}), f"{line}expected a mapping with the key `target`, got none: add it")
    refused(lambda: call(1e-4, {**adam, "params": {"weightdecay": 1}}), "say weight_decay instead of weightdecay")
    for params in (5, {"lr": 1}, {"betas": "x"}):
        refused(lambda: call(1e-4, {**adam, "params": params}), "arguments that torch.optim.AdamW takes, got ")  # noqa: B023
    for parameters in ([], 5, model):
        refused(lambda: call(1e-4, adam, parameters), "arguments that torch.optim.AdamW takes, got ")  # noqa: B023
    assert call(torch.tensor(1e-3), {**adam, "params": {"weight_decay": 0.5}}).defaults["weight_decay"] == 0.5


def test_parameters_of_an_average() -> None:
    model = nn.Linear(2, 2)
    average: Any = vae_model.LitEma(model)
    for given in (None, model, "abc", [1]):
        refused(lambda: average.store(given), "store: expected parameters, got ")  # noqa: B023
        refused(lambda: average.restore(given), "restore: expected parameters, got ")  # noqa: B023
    line = "expected the model it was made for, got other shapes of weight: give that one"
    with pytest.raises(ValueError, match=line):
        average.copy_to(nn.Linear(3, 2))
    average.store(iter(model.parameters()))
    average.restore(model.parameters())


class Own(nn.Module):
    """A regulariser of one's own, with what it returns."""

    def __init__(self, result: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.result = result

    def forward(self, z: Tensor) -> Any:
        """As told."""
        return self.result(z)


def test_regularisers_of_ones_own() -> None:
    engine: Any = vae_model.AutoencoderKL(4, DD)
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    for result in (lambda z: z, lambda _: None, lambda z: (z, 1.0), lambda z: (z, {}, {})):
        engine.regularization = Own(result)
        refused(lambda: engine.encode(x), "Own: expected a regulariser that returns latents and a dictionary to log, ")
        refused(lambda: engine(x), "Own: expected a regulariser")
    engine.regularization = Own(lambda z: [z[:, :4], {"a": z.mean()}])
    assert engine.encode(x).shape == (2, 4, 8, 8)


def test_tiny_sizes_and_latents() -> None:
    tiny: Any = vae_model.AutoencoderTiny()
    for call in (tiny.scale_latents, tiny.unscale_latents):
        for x in (None, 5, torch.zeros(1, dtype=torch.uint8)):
            refused(lambda: call(x), "scale_latents: x: expected a tensor of floats, got ")  # noqa: B023
    refused(lambda: tiny.enable_tiling("no"), "enable_tiling: use_tiling: expected True or False, got 'no'")
    tiny.enable_tiling()
    for name, value in (("tile_latent_min_size", "8"), ("tile_sample_min_size", 0), ("tile_overlap_factor", "0.1")):
        before = getattr(tiny, name)
        setattr(tiny, name, value)
        refused(lambda: tiny.decode(torch.zeros(1, 4, 2, 2)), f"AutoencoderTiny: {name}: expected ")
        setattr(tiny, name, before)


def test_a_device_behind_the_source() -> None:
    load: Any = load_vae
    line = "load_vae: expected one source, all else by its name, got "
    for given, meant in (
        ("cpu", "device='cpu'"),
        (torch.device("cuda:1"), "device=device(type='cuda', index=1)"),
        (torch.float16, "dtype=torch.float16"),
        ("bfloat16", "dtype='bfloat16'"),
        ("decoder.safetensors", "load_vae([encoder, decoder]), if these are two halves"),
    ):
        refused(lambda: load("bundled", given), line, f": say {meant}")  # noqa: B023
