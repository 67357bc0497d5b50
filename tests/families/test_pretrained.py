"""The tiny autoencoder as a model of diffusers': folders, configurations, outputs, counts.

The other side is diffusers itself, which reads what is written here and writes what is read.
"""

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae, save
from exact_vae.vae_model.errors import InputError, VAEFileError
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny, AutoencoderTinyOutput, DecoderOutput
from torch import Tensor, nn

diffusers = pytest.importorskip("diffusers", reason="the other implementation of these folders")

SMALL: dict[str, Any] = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (8, 8, 8),
    "num_encoder_blocks": (1, 1, 2),
    "num_decoder_blocks": (2, 1, 1),
}
CASES: dict[str, dict[str, Any]] = {
    "as published": {},
    "activation": {"act_fn": "silu"},
    "upsampling": {"upsample_fn": "bilinear"},
    "scaling": {"upsampling_scaling_factor": 3},
    "latents": {"latent_magnitude": 5, "latent_shift": 0.25, "latent_channels": 16},
    "convention": {"scaling_factor": 0.3611, "shift_factor": 0.1159, "force_upcast": True},
    "image channels": {"in_channels": 4, "out_channels": 1},
}
every_case = pytest.mark.parametrize("change", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(17)


def small(**change: Any) -> AutoencoderTiny:
    return AutoencoderTiny(**SMALL | change).eval()


def inputs(model: Any) -> tuple[Tensor, Tensor]:
    x = torch.rand(2, model.config.in_channels, 12, 20) * 2 - 1
    return x, torch.randn(2, model.config.latent_channels, 4, 3)


def require_same(a: Any, b: Any) -> None:
    """Equal in all that they compute: the same operations, so the same bits."""
    x, z = inputs(a)
    with torch.no_grad():
        for method, given in (("encode", x), ("decode", z)):
            assert getattr(a, method)(given)[0].equal(getattr(b, method)(given)[0]), method
        if a.config.upsampling_scaling_factor == 2 and a.config.in_channels == a.config.out_channels:
            assert a(x)[0].equal(b(x)[0])
        assert a.scale_latents(z).equal(b.scale_latents(z))


@every_case
def test_a_folder_comes_back_and_opens_in_diffusers(change: dict[str, Any], tmp_path: Path) -> None:
    model = small(**change)
    model.save_pretrained(tmp_path / "new" / "folder")
    again = AutoencoderTiny.from_pretrained(tmp_path / "new/folder")
    theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "new/folder", low_cpu_mem_usage=False).eval()
    assert again.config == model.config
    require_same(again, model)
    require_same(theirs, model)
    fields = json.loads((tmp_path / "new/folder/config.json").read_text())
    assert (fields["_class_name"], fields["scaling_factor"]) == ("AutoencoderTiny", change.get("scaling_factor", 1.0))


@every_case
def test_a_folder_of_diffusers_is_the_same_network(change: dict[str, Any], tmp_path: Path) -> None:
    theirs = diffusers.AutoencoderTiny(**SMALL | change).eval()
    theirs.save_pretrained(tmp_path / "vae")
    ours = AutoencoderTiny.from_pretrained(tmp_path, subfolder="vae")
    require_same(ours, theirs)
    for name in ("latent_magnitude", "latent_shift", "scaling_factor", "shift_factor", "act_fn"):
        assert ours.config[name] == getattr(ours.config, name) == theirs.config[name]


def test_what_is_set_on_the_model_is_what_is_written(tmp_path: Path) -> None:
    model = small()
    model.latent_magnitude, model.scaling_factor = 7, 0.5
    model.save_pretrained(tmp_path)
    again = AutoencoderTiny.from_pretrained(tmp_path)
    assert (again.latent_magnitude, again.scaling_factor, again.config.latent_magnitude) == (7, 0.5, 7)
    require_same(again, model)


@pytest.mark.parametrize(("name", "channels", "scale"), [("sd", 4, 0.18215), ("sd3", 16, 1.5305), ("raw", 4, 1.0)])
def test_a_folder_of_a_known_format_has_the_numbers_of_diffusers_pipelines(
    name: str, channels: int, scale: float, tmp_path: Path
) -> None:
    save(small(latent_channels=channels), tmp_path / "tiny.safetensors")
    model = load_vae(tmp_path / "tiny.safetensors", latent_format=name, dtype="float32").first_stage_model
    assert model.scaling_factor == scale  # from raw latents to the network's
    model.save_pretrained(tmp_path / "vae")
    theirs = diffusers.AutoencoderTiny.from_pretrained(tmp_path / "vae", low_cpu_mem_usage=False).eval()
    assert (theirs.config.scaling_factor, theirs.config.shift_factor) == (1.0, 0.0)  # from a pipeline's to it
    require_same(AutoencoderTiny.from_pretrained(tmp_path / "vae"), theirs)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_variants(suffix: str, tmp_path: Path) -> None:
    theirs = diffusers.AutoencoderTiny(**SMALL).eval()
    theirs.save_pretrained(tmp_path, variant="ema", safe_serialization=suffix == "safetensors")
    require_same(AutoencoderTiny.from_pretrained(tmp_path, variant="ema"), theirs)
    require_same(AutoencoderTiny.from_pretrained(tmp_path), theirs)  # the only one there is, as for load_vae
    with pytest.raises(VAEFileError, match="expected the variant fp16, found ema: choose one of these"):
        AutoencoderTiny.from_pretrained(tmp_path, variant="fp16")
    model = small()
    model.save_pretrained(tmp_path, variant="mine")
    require_same(AutoencoderTiny.from_pretrained(tmp_path, variant="mine"), model)


def test_loaded_models_are_ready_to_run_and_to_train(tmp_path: Path) -> None:
    small().half().save_pretrained(tmp_path)
    with torch.inference_mode():
        model = AutoencoderTiny.from_pretrained(tmp_path)
    assert (model.training, model.dtype, model.device) == (False, torch.float32, torch.device("cpu"))
    assert AutoencoderTiny.from_pretrained(tmp_path, torch_dtype="auto").dtype == torch.float16
    for name in ("torch_dtype", "dtype"):
        for dtype in (torch.float64, "float64", "torch.float64", "double"):
            assert AutoencoderTiny.from_pretrained(tmp_path, **{name: dtype}).dtype == torch.float64
    model(torch.rand(1, 3, 8, 8), quantize=False).sample.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        model.decoder.layers[0].weight.add_(1)
    model.save_pretrained(tmp_path)  # over the files that it came from
    require_same(AutoencoderTiny.from_pretrained(tmp_path), model)


def test_changes_replace_fields(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    assert AutoencoderTiny.from_pretrained(tmp_path, latent_magnitude=4).latent_magnitude == 4
    config = AutoencoderTiny.load_config(tmp_path)
    model = AutoencoderTiny.from_config(config, act_fn="mish", latent_channels=7)
    assert (model.config.act_fn, model.config.num_encoder_blocks) == ("mish", (1, 1, 2))
    assert model.encode(torch.zeros(1, 3, 8, 8)).latents.shape == (1, 7, 2, 2)
    assert AutoencoderTiny.from_config(small(act_fn="gelu").config).config.act_fn == "gelu"


def test_only_the_first_process_writes(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "a", is_main_process=False)
    assert not (tmp_path / "a").exists()
    with pytest.raises(InputError, match="safe_serialization: expected True, got False"):
        small().save_pretrained(tmp_path / "a", safe_serialization=False)
    assert not (tmp_path / "a").exists()
    small().save_config(tmp_path / "b")
    assert [file.name for file in (tmp_path / "b").iterdir()] == ["config.json"]


@pytest.mark.parametrize("change", [{"midblock_gn": True}, {"strided_stem": True}])
def test_what_diffusers_would_read_as_another_network_is_not_written(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"a network that diffusers has, got one with {next(iter(change))}: write"):
        small(**change).save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_the_configuration_does_not_describe_is_not_written(tmp_path: Path) -> None:
    model = small()
    model.decoder.layers[1] = nn.GELU()
    with pytest.raises(InputError, match="expected the network that its config describes, got other layers"):
        model.save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def written(folder: Path, **fields: Any) -> Path:
    small().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text()) | fields
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_errors_say_what_to_do(tmp_path: Path) -> None:
    load = AutoencoderTiny.from_pretrained
    good = written(tmp_path / "good")
    wrong: dict[str, Any] = {
        "madebyollin/taesd: expected a local folder, found none there: download": lambda: load("madebyollin/taesd"),
        'expected a config.json, found none: say subfolder="vae"': lambda: load(written(tmp_path / "p/vae").parent),
        "expected a folder, got a file: open it by load_vae": lambda: load(good / "config.json"),
        "expected names of its arguments, got revision": lambda: load(good, revision="main"),
        "torch_dtype: expected one of auto, float32, .*, got 'flaot16': float16 is probably meant": lambda: load(
            good, torch_dtype="flaot16"
        ),
        "torch_dtype: .*, got torch.int8: nothing computes in 8 bits": lambda: load(good, torch_dtype=torch.int8),
        "expected names of its arguments, got act_fnn: act_fn is probably meant": lambda: load(good, act_fnn="silu"),
        "expected names that it knows, got latent_shfit: latent_shift is probably meant": lambda: load(
            written(tmp_path / "misspelt", latent_shfit=0.25)
        ),
        r"expected in decoder.layers.0.weight \(8, 9, 3, 3\) as config.json says, found \(8, 4, 3, 3\)": lambda: load(
            good, latent_channels=9
        ),
        r"expected in decoder.layers.10.bias nothing as config.json says, found \(3,\)": lambda: load(
            written(tmp_path / "fewer", num_decoder_blocks=[1, 1, 1])
        ),
        "expected one of AutoencoderTiny, got one of AutoencoderKL: use load_vae": lambda: load(
            written(tmp_path / "kl", _class_name="AutoencoderKL")
        ),
        "config.json: act_fn: expected one of relu, silu": lambda: load(written(tmp_path / "act", act_fn="tanhshrink")),
        "AutoencoderTiny: .*num_decoder_blocks: expected a sequence of whole numbers.*, got 'many'": lambda: load(
            written(tmp_path / "text", num_decoder_blocks="many", decoder_block_out_channels="four")
        ),
        "from_config: expected a mapping, got 'folder': give AutoencoderTiny.load_config": lambda: (
            AutoencoderTiny.from_config("folder")  # type: ignore[arg-type]
        ),
    }
    for text, call in wrong.items():
        with pytest.raises((InputError, VAEFileError), match=text) as caught:
            call()
        assert "\n" not in str(caught.value)
    for text in ("{", "[]"):
        (good / "config.json").write_text(text)
        with pytest.raises(VAEFileError, match=r"config.json: expected .*, found something else"):
            load(good)


def test_unknown_fields_are_named(caplog: pytest.LogCaptureFixture) -> None:
    AutoencoderTiny.from_config({**SMALL, "_diffusers_version": "0.42.1", "block_out_channels": [8], "attention": 1})
    assert [record.message for record in caplog.records] == ["AutoencoderTiny: ignoring unknown options attention"]


def test_the_configuration_is_read_by_attribute_and_never_written() -> None:
    config = small(act_fn="silu").config
    assert config.act_fn == config["act_fn"] == "silu"
    assert config.get("nothing") is None
    assert "act_fn" in dir(config)
    with pytest.raises(AttributeError, match=r"expected one of 18 names, the nearest act_fn, got 'activ'"):
        _ = config.activ
    writes: list[Any] = [
        lambda: config.__setitem__("act_fn", "relu"),
        lambda: setattr(config, "act_fn", "relu"),
        lambda: config.update(act_fn="relu"),
        lambda: config.pop("act_fn"),
        lambda: config.clear(),
        lambda: config.setdefault("a", 1),
    ]
    for write in writes:
        with pytest.raises(TypeError, match="expected to be read only"):
            write()
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == dict(config)
    assert type(copy.deepcopy(config)) is type(config)


def test_outputs_are_read_as_diffusers_are() -> None:
    model = small()
    x, z = inputs(model)
    for out, name, kind in (
        (model.encode(x), "latents", AutoencoderTinyOutput),
        (model.decode(z), "sample", DecoderOutput),
        (model(x), "sample", DecoderOutput),
    ):
        assert isinstance(out, kind)
        assert list(out.keys()) == [name]
        assert name in out
        assert "other" not in out
        for value in (out[name], out[0], getattr(out, name), out.to_tuple()[0], out.get(name), out.values()[0]):
            assert value is out[0]
        assert type(out.to_tuple()) is tuple
        assert dict(out)[name] is dict(out.items())[name] is out[0]
        (only,) = out
        assert only is out[0]
        assert out.get("other") is None
        with pytest.raises(KeyError, match=f"expected {name}, got 'other'"):
            _ = out["other"]
        assert pickle.loads(pickle.dumps(out))[name].equal(out[name])


def test_what_diffusers_models_tell_of_themselves() -> None:
    ours, theirs = small().to(torch.bfloat16), diffusers.AutoencoderTiny(**SMALL).to(torch.bfloat16)
    for model in (ours, theirs):
        assert (model.dtype, model.device.type, model.is_gradient_checkpointing) == (torch.bfloat16, "cpu", False)
        model.encoder.requires_grad_(False)
        model.enable_gradient_checkpointing()
        assert model.is_gradient_checkpointing
    assert ours.num_parameters() == theirs.num_parameters()
    assert 0 < ours.num_parameters(only_trainable=True) == theirs.num_parameters(only_trainable=True)
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)
    ours.disable_gradient_checkpointing()
    assert not ours.is_gradient_checkpointing
    assert ours.to("meta").device == torch.device("meta")
