"""Settings that no shape tells: misspelt ones are refused or noted; what nobody told is said where it may be wrong."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import InputError, load_vae, save
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.vae_model import AutoencoderKL, AutoencoderTiny, Decoder, Encoder, instantiate_from_config
from safetensors.torch import save_file

NOTES = "exact_vae.vae_model.notes"
PLAIN: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
SMALL: dict[str, Any] = {
    "ch": 32, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "in_channels": 3,
    "resolution": 32, "z_channels": 4, "num_groups": 16,
}  # fmt: skip


def of_16_groups() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(4, ddconfig=SMALL, sample_posterior=False).eval()


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == NOTES and record.levelno >= 30]


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"norm_num_group": 16}, "got norm_num_group: norm_num_groups is probably meant"),
        ({"norm-num-groups": 16}, "got norm-num-groups: norm_num_groups is probably meant"),
        ({"Tanh_out": True}, "got Tanh_out: tanh_out is probably meant"),
        ({"encoder_norm_num_group": 16}, "encoder_norm_num_groups is probably meant"),
        ({"scaling_facter": 0.5}, "scaling_factor is probably meant"),
        ({"colour": "red", 1: 2}, "got colour, 1: leave it out; known are act_fn, .*norm_num_groups"),
        ({"ddconfig": SMALL}, "got ddconfig: it is a dictionary itself, so give config=ddconfig"),
        ({"upsampling": 2, "vae": {}}, "got upsampling, vae: "),
        ({"merge_strategy": "fixed"}, "got merge_strategy: leave it out, such a model has nothing of it"),
    ],
)
def test_what_a_user_says_and_nobody_reads_is_refused(config: dict[Any, Any], text: str) -> None:
    for source in (of_16_groups().state_dict(), of_16_groups()):
        with pytest.raises(InputError, match=f"^config: expected settings of the ldm KL autoencoder, .*{text}"):
            load_vae(source, config=config, **PLAIN)


@pytest.mark.parametrize("name", list(ROWS))
def test_a_misspelt_setting_is_refused_by_every_family(name: str) -> None:
    state, right = random_model(ROWS[name]).state_dict(), hints(ROWS[name].config)
    load_vae(state, config={**right, "in_channels": 3, "_class_name": "X"}, **PLAIN)
    for misspelt, meant in (("latent_formt", "latent_format"), ("scaling_fator", "scaling_factor")):
        with pytest.raises(InputError, match=f"got {misspelt}: {meant} is probably meant"):
            load_vae(state, config={**right, misspelt: "1"}, **PLAIN)


def test_other_names_of_the_groups_count() -> None:
    model, z = of_16_groups(), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        right = model.decode(z).add(1).div(2).clamp(0, 1).movedim(1, -1)
    for config in ({"norm_num_groups": 16}, {"num_groups": 16}, SMALL, {"decoder_norm_num_groups": 16, **SMALL}):
        image = load_vae(model.state_dict(), config=config, **PLAIN).decode(z, method="untiled")
        torch.testing.assert_close(image, right, rtol=0, atol=1e-6)
    other = load_vae(model.state_dict(), config={"num_groups": 8}, **PLAIN).decode(z)
    assert float((other - right).abs().max()) > 1e-3


def test_a_configuration_of_diffusers_is_taken_whole() -> None:
    diffusers = pytest.importorskip("diffusers")
    for kind, options in (("AutoencoderKL", {"norm_num_groups": 16, "block_out_channels": (32,)}),
                          ("AutoencoderTiny", {}), ("AutoencoderKLFlux2", {"norm_num_groups": 4})):  # fmt: skip
        widths = {"block_out_channels": (8, 8, 8, 8)} if kind == "AutoencoderKLFlux2" else {}
        model = getattr(diffusers, kind)(**options, **widths).eval()
        for config in (model.config, {**model.config, "_of_later": 1}):
            load_vae(model.state_dict(), config=config, **PLAIN)
        model.register_to_config(of_a_later_version=1)
        load_vae(model, **PLAIN)


def test_a_config_beside_the_file_is_noted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(of_16_groups().state_dict(), tmp_path / "vae.safetensors")
    fields = {"latent_channels": 4, "norm_num_groups": 16, "_diffusers_version": "9", "act_fn": "silu"}
    told = (
        ({}, [], ()),
        ({"of_later": 1}, [], ("not known in its config.json, and not read: of_later",)),
        ({"tanh_outt": True}, ["tanh_outt in its config.json is not read, tanh_out is probably meant"], None),
    )
    for more, warned, notes in told:
        (tmp_path / "config.json").write_text(json.dumps(fields | more))
        caplog.clear()
        with caplog.at_level(logging.INFO, logger=NOTES):
            loaded = load_vae(tmp_path / "vae.safetensors", **PLAIN).loaded
        assert [text.split(": ", 1)[1] for text in warnings_of(caplog)] == warned
        assert loaded.notes == (tuple(warned) if notes is None else notes)


def test_what_nobody_told_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = of_16_groups().state_dict()
    load_vae(state, **PLAIN)
    (text,) = warnings_of(caplog)
    assert text == (
        "the state dict: taken are norm_num_groups as 32, tanh_out as False, give_pre_end as False, for no shape tells "
        "them and nothing else does: where the model has others, say them by config={'norm_num_groups': ...}, or in a "
        "diffusers config.json beside the file"
    )
    caplog.clear()
    tiny = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                           num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), act_fn="silu")  # fmt: skip
    load_vae(tiny.state_dict(), latent_format="sd", **PLAIN)
    (text,) = warnings_of(caplog)
    assert text.startswith("the state dict: taken are act_fn as relu, upsample_fn as nearest, for no shape tells")
    caplog.clear()
    for model, told in (
        (of_16_groups(), {"norm_num_groups": 16}),
        (tiny, {"act_fn": "silu", "upsample_fn": "nearest"}),
    ):
        save(model, tmp_path / "a.safetensors")
        for source, config in ((tmp_path / "a.safetensors", None), (model, None), (model.state_dict(), told)):
            load_vae(source, config=config, latent_format="sd" if model is tiny else None, **PLAIN)
    assert not warnings_of(caplog)


@pytest.mark.parametrize("layout", ["ldm", "diffusers", "diffusers-old"])
def test_files_as_everybody_has_them_are_not_commented(layout: str, caplog: pytest.LogCaptureFixture) -> None:
    from exact_vae.vae_model.checkpoint.keys import to_layout

    for ch, factors in ((128, (1, 2, 4, 4)), (128, (1, 2, 4)), (128, (1, 1, 2, 2, 4))):
        options = {**SMALL, "ch": ch, "ch_mult": factors, "num_groups": 32, "num_res_blocks": 1}
        with torch.device("meta"):
            model = AutoencoderKL(4, ddconfig=options)
        state = {
            key: torch.empty(tensor.shape, dtype=torch.bfloat16) for key, tensor in to_layout(model, layout).items()
        }
        load_vae(state, device="cpu", dtype="bfloat16")
    load_vae(AutoencoderTiny().state_dict(), latent_format="sd", **PLAIN)
    assert not warnings_of(caplog)


@pytest.mark.parametrize(
    ("kind", "misspelt", "meant"),
    [
        *((Encoder, name, meant) for name, meant in (("doublez", "double_z"), ("num_group", "num_groups"))),
        *((Decoder, name, meant) for name, meant in (("tanh_outt", "tanh_out"), ("attn_typ", "attn_type"))),
    ],
)
def test_a_misspelt_argument_is_no_other_network(
    kind: type, misspelt: str, meant: str, caplog: pytest.LogCaptureFixture
) -> None:
    text = f"{kind.__name__}: expected names that it knows, got {misspelt}: {meant} is probably meant"
    with pytest.raises(InputError, match=f"^{text}$"):
        kind(**SMALL, **{misspelt: 1})
    with pytest.raises(InputError, match=text):
        instantiate_from_config({"target": kind.__name__, "params": {**SMALL, misspelt: 1}})
    with pytest.raises(InputError, match=f"got {misspelt}: {meant} is probably meant"):
        AutoencoderKL(4, ddconfig={**SMALL, misspelt: 1})
    kind(**SMALL, use_checkpoint=True, mask_channels=3)  # words of other programs
    assert "ignoring unknown options mask_channels, use_checkpoint" in caplog.text


def test_params_of_a_configuration_are_not_passed_over() -> None:
    with pytest.raises(InputError, match="got param: params is probably meant"):
        instantiate_from_config({"target": "AutoencoderTiny", "param": {"act_fn": "silu"}})
    with pytest.raises(InputError, match="AutoencoderTiny: expected names that it knows, got act_func: act_fn is"):
        AutoencoderTiny.from_config({"act_func": "silu"})
    assert AutoencoderTiny.from_config({"act_fn": "silu", "of_later": 1}).config.act_fn == "silu"
