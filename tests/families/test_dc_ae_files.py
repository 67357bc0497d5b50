"""DC-AE: read in every published form, and written again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.exact.test_planner_prediction import META
from exact_vae.tests.families.dc_ae import CASES, ROW, noise, theirs
from exact_vae.tests.families.table import ROWS, Row, random_model
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.describe import describe_vae
from exact_vae.vae_model.checkpoint.load import inspect_model, load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import InputError, VAEFileError
from exact_vae.vae_model.families.dc_ae.config import DCConfig, DCLevels, Stage
from exact_vae.vae_model.families.dc_ae.model import DCAutoencoder
from exact_vae.vae_model.families.table import FAMILIES

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")


def test_diffusers_reads_the_original_as_we_write_it() -> None:
    """Its own conversion knows one scale at most, and files without BatchNorm's counters."""
    pytest.importorskip("diffusers")
    from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers as converted

    for case in ("as Sana", "as in-1.0"):
        vae = theirs(**CASES[case])
        ours = load_model(vae.state_dict(), config=vae.config).model
        original = to_layout(ours, "original")
        back, expected = converted(dict(original)), vae.state_dict()
        assert back.keys() == expected.keys()
        assert all(torch.equal(back[key], tensor) for key, tensor in expected.items())
        again = load_model(original, config={"attention_head_dim": 8})
        assert (again.family, again.layouts) == ("dc_ae", ("original",))
        assert all(torch.equal(again.model.state_dict()[key], tensor) for key, tensor in ours.state_dict().items())


def test_names_of_the_original() -> None:
    """As the files of Sana's have them, where the encoder leaves pixels out, and of in-1.0, where it moves them."""
    stored = to_layout(random_model(ROW), "original")
    assert {"encoder.project_in.conv.weight", "encoder.stages.0.op_list.1.main.conv.weight"} < stored.keys()
    assert stored["encoder.stages.3.op_list.0.context_module.main.qkv.conv.weight"].shape == (48, 16, 1, 1)
    assert stored["encoder.stages.3.op_list.0.context_module.main.aggreg.0.1.weight"].shape == (48, 8, 1, 1)
    packed = to_layout(random_model(ROWS["DC-AE"]), "original")
    assert {
        "encoder.project_in.conv.conv.weight",
        "encoder.stages.1.op_list.1.main.conv.conv.weight",
        "decoder.stages.1.op_list.1.main.conv2.norm.running_mean",
        "decoder.project_out.op_list.2.conv.conv.weight",
    } < packed.keys()


@pytest.mark.parametrize("case", ["as Sana", "all else"])
def test_a_model_of_diffusers_and_its_folder(tmp_path: Path, case: str) -> None:
    vae = theirs(**{**CASES[case], "in_channels": 3}, scaling_factor=0.5)
    z = noise(1, 8, 3, 2)
    expected = ((vae.decode(z).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(load_vae(vae, device="cpu", dtype="float32").decode(z), expected, rtol=0, atol=2e-5)
    vae.save_pretrained(tmp_path / "theirs")
    convert_vae([str(tmp_path / "theirs")], tmp_path / "ours", "diffusers")
    again = type(vae).from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in vae.state_dict().items())
    assert torch.equal(again.decode(z).sample, vae.decode(z).sample)
    assert again.config["scaling_factor"] == 0.5


PUBLISHED: dict[str, dict[str, Any]] = {
    "sana": {
        "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * 3,
        "encoder_layers_per_block": [2, 2, 2, 3, 3, 3],
        "decoder_layers_per_block": [3, 3, 3, 3, 3, 3],
        "upsample_block_type": "interpolate",
        "downsample_block_type": "Conv",
        "scaling_factor": 0.41407,
    },
    **{
        f"f{2 ** (5 + deeper)}": {
            "latent_channels": 32 * 4**deeper,
            "encoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * (3 + deeper),
            "decoder_block_types": ["ResBlock"] * 3 + ["EfficientViTBlock"] * (3 + deeper),
            "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024, 2048, 2048][: 6 + deeper],
            "decoder_block_out_channels": [128, 256, 512, 512, 1024, 1024, 2048, 2048][: 6 + deeper],
            "encoder_layers_per_block": [0, 4, 8, 2, 2, 2, 2, 2][: 6 + deeper],
            "decoder_layers_per_block": [0, 5, 10, 2, 2, 2, 2, 2][: 6 + deeper],
            "encoder_qkv_multiscales": [[]] * (6 + deeper),
            "decoder_qkv_multiscales": [[]] * (6 + deeper),
            "decoder_norm_types": ["batch_norm"] * 3 + ["rms_norm"] * (3 + deeper),
            "decoder_act_fns": ["relu"] * 3 + ["silu"] * (3 + deeper),
        }
        for deeper in range(3)
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_are_told_by_their_weights_alone(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    with META:
        vae = diffusers.AutoencoderDC(**PUBLISHED[name])
    state = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in vae.state_dict().items()}
    state = {key: tensor if tensor.ndim else torch.tensor(0) for key, tensor in state.items()}
    state = {key: torch.empty_like(tensor, device="meta") for key, tensor in state.items()}
    _, family, config, _ = inspect_model(state)
    assert family == "dc_ae"
    told = FAMILIES["dc_ae"].diffusers_config(config, {})
    for field, value in vae.config.items():
        given = PUBLISHED[name].get(field, value)
        given = (
            [list(one) if isinstance(one, tuple) else one for one in given]
            if isinstance(given, (list, tuple))
            else given
        )
        if field in ("decoder_norm_types", "decoder_act_fns") and isinstance(given, str):
            given = [given] * 6
        if not field.startswith("_") and (field != "scaling_factor" or name == "sana"):
            assert told[field] == given, field
    assert (config.latent_channels, config.factor) == (
        PUBLISHED[name].get("latent_channels", 32),
        2 ** len(told["decoder_act_fns"][1:]),
    )


@pytest.mark.parametrize("layout", ROW.layouts)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_file(half: str, layout: str) -> None:
    model = random_model(ROW)
    parts = (ROW.config.encoder, None) if half == "encoder" else (None, ROW.config.decoder)  # type: ignore[attr-defined]
    config = DCConfig(32, *parts, head_dim=8)
    part = DCAutoencoder(config)
    part.load_state_dict({key: tensor for key, tensor in model.state_dict().items() if key.startswith(half)})
    loaded: Any = load_model(to_layout(part, layout))
    assert (loaded.family, loaded.config) == ("dc_ae", config)
    x = noise(1, 32, 2, 1) if half == "decoder" else noise(1, 3, 32, 64)
    direction, other = ("decode", "encode") if half == "decoder" else ("encode", "decode")
    assert torch.equal(getattr(loaded.model, direction)(x), getattr(model, direction)(x))
    with pytest.raises(RuntimeError, match="expected a model with"):
        getattr(loaded.model, other)(x)


@pytest.mark.parametrize("layout", ROW.layouts)
def test_damaged_files_are_refused(layout: str) -> None:
    stored = to_layout(random_model(ROW), layout)
    key = next(name for name in stored if name.endswith((".attn.to_k.weight", ".qkv.conv.weight")))
    lacking = {name: tensor for name, tensor in stored.items() if name != key}
    more = stored | {"decoder.mid.attn_1.extra.weight": torch.zeros(1)}
    cut = stored | {key: stored[key][:-1]}
    for damaged, text in (
        (lacking, "missing "),
        (more, "unknown decoder.mid.attn_1.extra"),
        (cut, "shape|divides"),
    ):
        with pytest.raises(VAEFileError, match=rf"whole DC-AE autoencoder in {layout} layout, .*({text})") as refused:
            load_model(damaged)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"decoder_norm_types": "layer_norm"}, "decoder_norm_types layer_norm"),
        ({"decoder_norm_types": ["rms_norm"] * 3}, "decoder_norm_types"),
        ({"decoder_act_fns": "tanh"}, "decoder_act_fns tanh"),
        ({"decoder_act_fns": ["silu"] * 3}, "expected 6 names as decoder_act_fns, got 3"),
        ({"decoder_conv_act_fn": "tanh"}, "decoder_conv_act_fn tanh"),
        ({"decoder_in_shortcut": "maybe"}, "decoder_in_shortcut maybe"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_one_line(config: dict[str, Any], text: str) -> None:
    with pytest.raises(VAEFileError, match=text) as refused:
        load_model(to_layout(random_model(ROW), "diffusers"), config=config)
    assert "\n" not in str(refused.value)


def test_settings_come_back_from_a_file_or_are_refused(tmp_path: Path) -> None:
    """The original's readers know the usual ones alone."""
    stages = (Stage(16, 1, activation="gelu"), Stage(16, 1, attends=True))
    config = DCConfig(8, None, DCLevels(stages, shortcut=False), head_dim=4, last_activation="silu")
    model = random_model(Row("dc_ae", config, 8, 2))
    save(model, tmp_path / "vae.safetensors")
    assert load_model(tmp_path / "vae.safetensors").config == config
    with pytest.raises(InputError, match="expected settings that its readers know, got decoder without shortcut, "):
        save(model, tmp_path / "other.safetensors", layout="original")


def test_a_scale_that_nobody_tells_is_said_to_be_missing(tmp_path: Path) -> None:
    for name, count in (("Sana", 0), ("DC-AE", 1)):
        save(random_model(ROWS[name]), tmp_path / "vae.safetensors")
        _, notes = convert_vae([str(tmp_path / "vae.safetensors")], tmp_path / name, "diffusers")
        assert len(notes) == count
        assert all("without scaling_factor, which the source does not tell" in note for note in notes)


def test_what_info_says(tmp_path: Path) -> None:
    for name, scale in (("Sana", "0.41407 and 0, of Sana"), ("DC-AE", "not known")):
        save(random_model(ROWS[name]), tmp_path / "vae.safetensors")
        facts = describe_vae([str(tmp_path / "vae.safetensors")])
        assert (facts["family"], facts["latent channels"], facts["pixels per latent cell"]) == (
            "DC-AE autoencoder",
            32,
            32,
        )
        assert facts["scale and shift"] == scale


def test_sound_is_refused() -> None:
    """ACE-Step's audio VAE is a network of the same kind, with two channels."""
    vae = theirs(in_channels=2)
    for prefix in ("", "dcae."):
        with pytest.raises(VAEFileError, match="expected pictures, got the two channels of sound") as refused:
            load_model({f"{prefix}{key}": tensor for key, tensor in vae.state_dict().items()})
        assert "\n" not in str(refused.value)
