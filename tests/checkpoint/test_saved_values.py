"""Settings that no shape tells, one by one: where they stand in a file, that they are honoured, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import require_savable, save
from exact_vae.vae_model.errors import InputError, VAEFileError
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL, AutoencodingEngine
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from safetensors import safe_open
from torch import Tensor, nn

pytestmark = pytest.mark.usefixtures("no_gradients")

DD: dict[str, Any] = {
    "ch": 8, "out_ch": 3, "in_channels": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (),
    "resolution": 32, "z_channels": 4, "num_groups": 4,
}  # fmt: skip
WIDTHS = {"encoder_block_out_channels": (8,) * 3, "decoder_block_out_channels": (8,) * 3}
BLOCKS = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}


def kl(change: dict[str, Any] | None = None, decoder: dict[str, Any] | None = None, **options: Any) -> AutoencoderKL:
    torch.manual_seed(0)
    dd = DD | (change or {})
    options = {"decoder_ddconfig": dd | decoder if decoder else None} | options
    return AutoencoderKL(4, ddconfig=dd, sample_posterior=False, **options).eval()


def tiny(**change: Any) -> AutoencoderTiny:
    torch.manual_seed(0)
    return AutoencoderTiny(**(WIDTHS | BLOCKS | change)).eval()


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def assert_same(ours: Any, theirs: Any, *, encodes: bool = True) -> None:
    """The same bits out of both halves."""
    generator = torch.Generator().manual_seed(1)
    z = torch.randn(
        2, theirs.decoder.layers[0].in_channels if isinstance(theirs, AutoencoderTiny) else 4, 6, 5, generator=generator
    )
    assert torch.equal(first(ours.decode(z)), first(theirs.decode(z)))
    if encodes:
        x = torch.rand(2, 3, 24, 20, generator=generator) * 2 - 1
        assert torch.equal(first(ours.encode(x)), first(theirs.encode(x)))


KL: dict[str, tuple[Callable[[], AutoencoderKL], dict[str, str]]] = {
    "tanh": (lambda: kl({"tanh_out": True}), {"tanh_out": "True"}),
    "tanh of the decoder": (lambda: kl(None, {"tanh_out": True}), {"tanh_out": "True"}),
    "before the end": (lambda: kl(None, {"give_pre_end": True}), {"give_pre_end": "True"}),
    "other groups in each half": (
        lambda: kl(None, {"num_groups": 2}),
        {"encoder_norm_num_groups": "4", "decoder_norm_num_groups": "2"},
    ),
    "dropout": (lambda: kl({"dropout": 0.1}), {"dropout": "0.1"}),
    "resampling without convolutions": (lambda: kl({"resamp_with_conv": False}), {}),
    "of the encoder alone": (lambda: kl({"resamp_with_conv": False}, {"resamp_with_conv": True}), {}),
    "3x3 shortcuts": (lambda: kl({"conv_shortcut": True}), {}),
    "linear attention in levels": (lambda: kl({"attn_type": "linear", "attn_resolutions": (16, 32)}), {}),
    "no variances": (lambda: kl({"double_z": False}), {}),
    "f1": (lambda: kl({"ch_mult": (1,)}), {}),
}


@pytest.mark.parametrize("name", KL)
def test_kl(name: str, tmp_path: Path) -> None:
    make, told = KL[name]
    model = make()
    save(model, tmp_path / "m.safetensors")
    expected = told if "encoder_norm_num_groups" in told else told | {"norm_num_groups": "4"}
    assert header(tmp_path / "m.safetensors") == expected | {"format": "pt"}
    assert_same(load_model(tmp_path / "m.safetensors").model, model)
    dropouts = [
        layer.p for layer in load_model(tmp_path / "m.safetensors").model.modules() if isinstance(layer, nn.Dropout)
    ]
    assert {*dropouts} == {0.1 if name == "dropout" else 0.0}


def test_what_the_engine_runs_and_what_it_says_of_the_rest(tmp_path: Path) -> None:
    methods: dict[str, tuple[str, str | None]] = {}
    for name in ("tanh", "before the end", "resampling without convolutions", "3x3 shortcuts"):
        model = KL[name][0]()
        save(model, tmp_path / "m.safetensors")
        vae = load_vae(tmp_path / "m.safetensors", device="cpu", dtype="float32")
        z = torch.randn(1, 4, 6, 5)
        wanted = ((model.decode(z) + 1) / 2).clamp(0, 1).movedim(1, -1)
        torch.testing.assert_close(vae.decode(z), wanted, rtol=0, atol=2e-5)  # the project's bound, on a range of 1
        assert vae.last_report is not None
        methods[name] = (vae.last_report.method, vae.last_report.reason)
    assert methods["tanh"][0] == methods["before the end"][0] == "exact"
    assert methods["resampling without convolutions"] == (
        "untiled",
        "up.1.upsample: expected resampling with a convolution, got one without",
    )
    assert methods["3x3 shortcuts"][0] == "untiled"
    assert "conv_shortcut" in str(methods["3x3 shortcuts"][1])


def test_an_encoder_alone_whose_channels_are_all_means(tmp_path: Path) -> None:
    for double_z in (True, False):
        model = kl({"double_z": double_z}, parts=("encoder",))
        save(model, tmp_path / "m.safetensors")
        x = torch.rand(1, 3, 16, 16) * 2 - 1
        loaded = load_model(tmp_path / "m.safetensors")
        assert loaded.config.latent_channels == 4
        assert torch.equal(loaded.model.encode(x), model.encode(x))  # pyright: ignore


TINY: dict[str, Any] = {
    "act_fn": "silu", "upsample_fn": "bilinear", "upsampling_scaling_factor": 3, "latent_magnitude": 5,
    "latent_shift": 0.25, "force_upcast": True, "scaling_factor": 0.5, "shift_factor": 0.1, "out_channels": 4,
    "latent_channels": 16,
}  # fmt: skip


@pytest.mark.parametrize("name", TINY)
def test_tiny(name: str, tmp_path: Path) -> None:
    model, value = tiny(**{name: TINY[name]}), TINY[name]
    save(model, tmp_path / "m.safetensors")
    loaded: Any = load_model(tmp_path / "m.safetensors").model
    assert loaded.config[name] == value
    assert getattr(loaded, name, value) == value
    assert_same(loaded, model)
    x = torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded(x)[0], model(x)[0])  # by way of 8 bits, where magnitude and shift count


def test_a_config_beside_the_file_changes_nothing_that_the_file_tells(tmp_path: Path) -> None:
    config = {"latent_channels": 4, "act_fn": "gelu", "latent_shift": 0.75, "upsampling_scaling_factor": 4}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = tiny()
    save(model, tmp_path / "m.safetensors")
    loaded: Any = load_model(tmp_path / "m.safetensors").model
    assert_same(loaded, model)
    assert loaded.latent_shift == 0.5


def test_halves_that_differ_and_halves_that_contradict_each_other(tmp_path: Path) -> None:
    files = [tmp_path / "encoder.safetensors", tmp_path / "decoder.safetensors"]
    halves = [kl({"num_groups": 4}, parts=("encoder",)), kl({"num_groups": 2}, parts=("decoder",))]
    for half, file in zip(halves, files, strict=True):
        save(half, file)
    loaded: Any = load_model(files).model
    z, x = torch.randn(1, 4, 4, 4), torch.rand(1, 3, 16, 16) * 2 - 1
    assert torch.equal(loaded.decode(z), halves[1].decode(z))
    assert torch.equal(loaded.encode(x), halves[0].encode(x))
    contrary = [tiny(encoder_block_out_channels=None), tiny(decoder_block_out_channels=None, act_fn="silu")]
    for half, file in zip(contrary, files, strict=True):
        save(half, file)
    with pytest.raises(
        VAEFileError, match=r"expected one act_fn in both halves, got relu \(decoder\) and silu \(encoder\)"
    ):
        load_model(files)


class _Louder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * torch.relu(x)


def _circular(model: Any) -> None:
    model.decoder.conv_in.padding_mode = "circular"


def _other_eps(model: Any) -> None:
    model.encoder.mid.block_1.norm1.eps = 1e-3


def _other_regularizer(model: Any) -> None:
    model.regularization = nn.Identity()


def _unlike_groups(model: Any) -> None:
    model.decoder.mid.block_1.norm1.num_groups = 2


SPOILED = {
    "circular": (_circular, "decoder.conv_in .*padding_mode=circular"),
    "eps": (_other_eps, "encoder.mid.block_1.norm1 .*eps=0.001"),
    "regularizer": (_other_regularizer, "regularization Identity as DiagonalGaussianRegularizer"),
    "groups": (_unlike_groups, "norm"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_no_file_can_hold_is_refused_and_the_old_file_stays(name: str, tmp_path: Path) -> None:
    spoil, text = SPOILED[name]
    path, model = tmp_path / "m.safetensors", kl()
    save(model, path)
    before = path.read_bytes()
    spoil(model)
    with pytest.raises(InputError, match=text) as error:
        save(model, path)
    assert str(error.value).startswith("m.safetensors: expected ")
    assert "\n" not in str(error.value)
    assert [*tmp_path.iterdir()] == [path]
    assert path.read_bytes() == before
    with pytest.raises(InputError, match=r"^model\.params: expected "):
        require_savable(model, "model.params")


def test_layers_that_no_file_names_are_refused(tmp_path: Path) -> None:
    model: Any = tiny()
    model.decoder.layers[2].conv[1] = _Louder()
    with pytest.raises(InputError, match=r"decoder\.layers\.2\.conv\.1 _Louder as ReLU"):
        save(model, tmp_path / "m.safetensors")
    save(model, tmp_path / "m.safetensors", layout="taesd-encoder")  # the half that is as usual

    class Brighter(AutoencodingEngine):
        def decode(self, z: Tensor, **kwargs: Any) -> Tensor:
            return super().decode(z, **kwargs) + 1

    parts = [{"target": name, "params": DD} for name in ("Encoder", "Decoder")]
    how: dict[str, Any] = {"encoder_config": parts[0], "decoder_config": parts[1]}
    regularizer = {"target": "DiagonalGaussianRegularizer", "params": {"sample": False}}
    with pytest.raises(InputError, match="Brighter with a decode of its own as autoencoder"):
        save(Brighter(**how, regularizer_config=regularizer), tmp_path / "m.safetensors")
    engine = AutoencodingEngine(**how, regularizer_config=regularizer).eval()
    engine.loss = nn.Linear(2, 2)
    save(engine, tmp_path / "m.safetensors")  # a loss is no part of the autoencoder
    assert_same(load_model(tmp_path / "m.safetensors").model, engine)


@pytest.mark.parametrize(
    ("make", "layout", "text"),
    [
        (KL["tanh"][0], "diffusers", "tanh_out: save in the ldm layout"),
        (KL["before the end"][0], "diffusers-old", "give_pre_end"),
        (KL["resampling without convolutions"][0], "diffusers", "resamp_with_conv False"),
        (KL["other groups in each half"][0], "diffusers", "norms of other groups in each half"),
        (KL["3x3 shortcuts"][0], "diffusers", r"place for .*conv_shortcut.* save in the ldm layout"),
        (lambda: tiny(act_fn="silu"), "taesd-comfyui", "act_fn silu: save in the taesd-diffusers layout"),
        (lambda: tiny(act_fn="silu"), "taesd-encoder", "act_fn silu"),
        (lambda: tiny(upsample_fn="bicubic"), "taesd-decoder", "upsample_fn bicubic"),
    ],
)
def test_layouts_whose_readers_would_compute_something_else(make: Any, layout: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text) as error:
        save(make(), tmp_path / "m.safetensors", layout=layout)
    assert "\n" not in str(error.value)
    assert not [*tmp_path.iterdir()]


def test_an_encoder_is_free_of_what_only_the_decoder_has(tmp_path: Path) -> None:
    save(tiny(upsample_fn="bicubic"), tmp_path / "m.safetensors", layout="taesd-encoder")
    with pytest.raises(RuntimeError, match="half a model"):
        load_model(tmp_path / "m.safetensors").model.decode(torch.zeros(1, 4, 2, 2))  # pyright: ignore


def test_what_others_pass_over_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = kl({"ch": 32, "num_groups": 16, "ch_mult": (1, 3)}, {"give_pre_end": True})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            save(model, tmp_path / "m.safetensors")
    expected = "give_pre_end, norm_num_groups 16: this project reads it from the file, other programs pass over it"
    assert caplog.messages == [expected]
