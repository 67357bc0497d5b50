"""Finding the autoencoder in a file: behind prefixes, beside other tensors, from the header alone; and saying no."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.vae_model.checkpoint.load import inspect_model, load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.families.layout import PREFIXES
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.table import FAMILIES
from exact_vae.vae_model.families.tiny.config import TinyConfig
from exact_vae.vae_model.files import weights
from safetensors.torch import save_file
from torch import Tensor, nn

HALF = LevelsConfig(8, (8, 16), 1)
CONFIG = KLConfig(4, 4, HALF, HALF, num_groups=8)
GROUPS = {"norm_num_groups": 8}
TINY = TinyConfig(4, 3, 3, (4, 4), (4, 4), (1, 1), (1, 1))
CHAINS = [*PREFIXES, "model.first_stage_model.", "module.vae.", "module.model.vae.", "first_stage_model.module.model."]
LAYOUT_NAMES = ("ldm", "diffusers", "diffusers-old", "taesd-comfyui", "taesd-diffusers")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(100)


def model_for(layout: str) -> nn.Module:
    config = TINY if layout.startswith("taesd") else CONFIG
    return FAMILIES["tiny" if config is TINY else "kl"].build(config)


def assert_same(sources: Any, model: nn.Module) -> None:
    loaded = load_model(sources, config=GROUPS).model.state_dict()
    expected = model.state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + key: tensor for key, tensor in tensors.items()}


@pytest.mark.parametrize("prefix", CHAINS)
@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_prefixes_and_chains_of_them(layout: str, prefix: str) -> None:
    model = model_for(layout)
    stored = prefixed(to_layout(model, layout), prefix)
    assert_same(stored, model)
    assert load_model(stored, config=GROUPS).prefix == prefix
    assert list(stored) == list(prefixed(to_layout(model, layout), prefix))  # what is given stays as it is


@pytest.mark.parametrize("prefix", [chain for chain in CHAINS if chain != "model."])  # there the other model lives
@pytest.mark.parametrize("layout", ["ldm", "diffusers", "taesd-comfyui"])
def test_other_models_beside_the_autoencoder(layout: str, prefix: str) -> None:
    model = model_for(layout)
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(4, 4, 3, 3),
        "cond_stage_model.transformer.text_model.embeddings.weight": torch.zeros(2, 2),
        "model_ema.decay": torch.zeros(()),
        "alphas_cumprod": torch.zeros(10),
        "step": torch.tensor(7),
    }
    assert_same(others | prefixed(to_layout(model, layout), prefix), model)


def test_what_training_leaves_behind_is_ignored() -> None:
    model = model_for("ldm")
    left = {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(64, 3, 4, 4),
        "model_ema.decoderconv_inweight": torch.zeros(1),
        "discriminator.main.0.weight": torch.zeros(1),
        "colorize": torch.zeros(3, 1, 1, 1),
    }
    assert_same(to_layout(model, "ldm") | left, model)
    assert_same(prefixed(to_layout(model, "ldm") | left, "first_stage_model."), model)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_nested_state_dicts(depth: int, tmp_path: Path) -> None:
    model = model_for("ldm")
    content: dict[str, Any] = prefixed(to_layout(model, "ldm"), "module.")
    for _ in range(depth):
        content = {"epoch": 3, "state_dict": content}
    assert_same(content, model)
    torch.save(content, tmp_path / "vae.ckpt")
    assert_same(tmp_path / "vae.ckpt", model)


class HeaderOnly:
    """safe_open, whose tensors must not be read."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self.file = OPEN(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def get_tensor(self, name: str) -> Tensor:
        raise AssertionError(f"read {name}")


OPEN = weights.safe_open


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_inspection_reads_no_tensor(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(model_for(layout), tmp_path / "vae.safetensors", layout=layout)
    monkeypatch.setattr(weights, "safe_open", HeaderOnly)
    parts, family, config, hints = inspect_model(tmp_path / "vae.safetensors")
    assert [part.layout.name for part in parts] == [layout]
    assert family == ("tiny" if layout.startswith("taesd") else "kl")
    assert config == (TINY if family == "tiny" else CONFIG)
    assert hints["format"] == "pt"
    with pytest.raises(AssertionError, match="read "):
        load_model(tmp_path / "vae.safetensors")


def test_inspection_of_a_large_file_needs_its_header_only(tmp_path: Path) -> None:
    # The shapes of Stable Diffusion's autoencoder over data that the disk does not even hold.
    half = LevelsConfig(128, (128, 256, 512, 512), 2)
    sd = KLConfig(4, 4, half, half)
    with torch.device("meta"):
        state = FAMILIES["kl"].build(sd).state_dict()
    header: dict[str, Any] = {}
    end = 0
    for key, tensor in state.items():
        header[f"first_stage_model.{key}"] = {
            "dtype": "F32",
            "shape": list(tensor.shape),
            "data_offsets": [end, end := end + 4 * tensor.numel()],
        }
    text = json.dumps(header).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    parts, family, config, _ = inspect_model(path)
    assert (family, config) == ("kl", sd)
    assert end == 4 * (34_163_592 + 49_490_179 + 92)  # encoder, decoder, quant convolutions, as published
    assert set(parts[0].weights.dtypes.values()) == {torch.float32}


def test_detection_changes_nothing_and_does_not_read_file_names(tmp_path: Path) -> None:
    model = model_for("diffusers")
    save_file(to_layout(model, "diffusers"), tmp_path / "taesd_decoder_flux2_ldm.safetensors")
    assert_same(tmp_path / "taesd_decoder_flux2_ldm.safetensors", model)


def test_an_encoder_and_a_decoder_file_make_one_model() -> None:
    model = model_for("ldm")
    stored = to_layout(model, "diffusers")
    encoder = {key: t for key, t in stored.items() if key.startswith(("encoder.", "quant_conv."))}
    decoder = {key: t for key, t in to_layout(model, "ldm").items() if key.startswith(("decoder.", "post_quant_conv."))}
    assert_same([encoder, prefixed(decoder, "vae.")], model)  # each in its own layout
    assert_same([decoder, encoder], model)
    for half, missing in ((encoder, "decoder"), (decoder, "encoder")):
        loaded = load_model(half, config=GROUPS)
        assert getattr(loaded.config, missing) is None
        assert not hasattr(loaded.model, missing)
    with pytest.raises(VAEFileError, match=r"expected an encoder and a decoder, found .* in both: give each half once"):
        load_model([encoder, encoder])
    with pytest.raises(VAEFileError, match="expected the halves of one autoencoder, found ldm and taesd-decoder"):
        load_model([decoder, to_layout(model_for("taesd"), "taesd-decoder")])


def test_halves_of_different_factors_do_not_belong_together() -> None:
    stored = to_layout(model_for("ldm"), "ldm")
    deeper = LevelsConfig(8, (8, 16, 16), 1)
    other = FAMILIES["kl"].build(KLConfig(4, 4, deeper, deeper, num_groups=8)).state_dict()
    halves = [
        {key: t for key, t in state.items() if key.startswith(half)}
        for state, half in ((stored, "encoder."), (other, "decoder."))
    ]
    with pytest.raises(VAEFileError, match="expected equal factors, got 2"):
        load_model(halves, config=GROUPS)


def test_all_differences_are_gathered() -> None:
    stored = to_layout(model_for("diffusers"), "diffusers")
    del stored["decoder.mid_block.resnets.0.norm2.bias"], stored["encoder.down_blocks.0.resnets.0.conv2.bias"]
    stored["decoder.extra.weight"] = torch.zeros(2)
    stored["quant_conv.bias"] = torch.zeros(5)
    with pytest.raises(VAEFileError) as error:
        load_model(prefixed(stored, "vae."), config=GROUPS)
    text = str(error.value)
    assert "\n" not in text
    for piece in (
        "missing vae.decoder.mid_block.resnets.0.norm2.bias, vae.encoder.down_blocks.0.resnets.0.conv2.bias",
        "unknown vae.decoder.extra.weight",
        "vae.quant_conv.bias has shape (5,) instead of (8,)",
        "ldm KL autoencoder in diffusers layout",
    ):
        assert piece in text


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("model.diffusion_model.input_blocks.0.0.weight", "a diffusion model"),
        ("lora_unet_x.lora_up.weight", "a LoRA"),
        ("text_model.encoder.layers.0.weight", "a text encoder"),
        ("something.else", "1 other tensors"),
    ],
)
def test_other_models_are_named(key: str, found: str) -> None:
    with pytest.raises(VAEFileError) as error:
        load_model({key: torch.zeros(1)})
    assert f"expected an autoencoder, found {found}; nearest family: " in str(error.value)
    assert str(error.value).endswith(": choose a VAE file")


def test_a_flux2_file_is_told_from_others() -> None:
    stored = to_layout(model_for("ldm"), "ldm") | {"bn.running_mean": torch.zeros(128)}
    with pytest.raises(VAEFileError, match=r"expected a whole Flux\.2 autoencoder in ldm layout, found missing bn"):
        load_model(stored, config=GROUPS)


def test_two_layouts_in_one_file_are_refused() -> None:
    both = to_layout(model_for("ldm"), "ldm") | to_layout(model_for("taesd"), "taesd-comfyui")
    with pytest.raises(VAEFileError, match="expected the keys of one layout, found ldm and taesd-comfyui"):
        load_model(both)


def test_integers_are_no_weights() -> None:
    stored = to_layout(model_for("ldm"), "ldm")
    stored["decoder.conv_out.bias"] = torch.zeros(3, dtype=torch.int8)
    with pytest.raises(VAEFileError, match=r"not floating point: decoder.conv_out.bias"):
        load_model(stored, config=GROUPS)


def test_wrong_norm_groups_are_refused() -> None:
    with pytest.raises(VAEFileError, match="expected widths divisible by 5 norm groups"):
        load_model(to_layout(model_for("ldm"), "ldm"), config={"norm_num_groups": 5})


@pytest.mark.parametrize(
    ("layout", "field", "usual", "other"),
    [
        ("diffusers", "act_fn", "silu", "gelu"),
        ("taesd-diffusers", "act_fn", "mish", "elu"),
        ("taesd-diffusers", "upsample_fn", "bicubic", "area"),
        ("taesd-diffusers", "upsampling_scaling_factor", 4, 400),
        ("taesd-diffusers", "upsampling_scaling_factor", 1, 10**400),
        ("taesd-diffusers", "latent_magnitude", 4.5, 0),
        ("taesd-diffusers", "force_upcast", True, "perhaps"),
    ],
)
def test_a_config_that_asks_for_another_network_is_refused(
    layout: str, field: str, usual: Any, other: Any, tmp_path: Path
) -> None:
    # No shape tells these fields; a model built as usual would load and compute something else.
    save_file(to_layout(model_for(layout), layout), tmp_path / "diffusion_pytorch_model.safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"latent_channels": 4, field: usual}), encoding="utf-8")
    loaded = load_model(tmp_path)
    assert loaded.layouts == (layout,)
    assert layout == "diffusers" or getattr(loaded.config, field) == usual
    config.write_text(json.dumps({"latent_channels": 4, field: other}), encoding="utf-8")
    with pytest.raises(VAEFileError, match=field):
        load_model(tmp_path)
