"""Names, arguments and attributes as readers of ldm, sgm and diffusers type them; refusals say what to write."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import exact_vae.vae_model as package
import pytest
import torch
from exact_vae.vae_model import (
    AbstractAutoencoder,
    AutoencoderKL,
    AutoencoderTiny,
    AutoencodingEngine,
    AutoencodingEngineLegacy,
    Decoder,
    DiagonalGaussianRegularizer,
    Downsample,
    Encoder,
    InputError,
    Model,
    ResnetBlock,
    Upsample,
    VideoDecoder,
    get_obj_from_str,
    instantiate_from_config,
)
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.families.ldm.program import build_program
from torch import nn
from torch.nn import functional

DD: dict[str, Any] = {
    "ch": 4,
    "out_ch": 3,
    "ch_mult": [1, 2],
    "num_res_blocks": 1,
    "attn_resolutions": [8],
    "in_channels": 3,
    "resolution": 16,
    "z_channels": 3,
    "num_groups": 2,
}
REGULARIZER = {"target": "ldm_patched.ldm.models.autoencoder.DiagonalGaussianRegularizer"}
LDM = "ldm_patched.ldm.modules.diffusionmodules.model"


@pytest.fixture(autouse=True)
def seed(one_thread: None) -> None:
    torch.manual_seed(18)


def engine(*arguments: Any, **options: Any) -> AutoencodingEngine:
    return AutoencodingEngine(
        *arguments,
        encoder_config={"target": f"{LDM}.Encoder", "params": DD},
        decoder_config={"target": f"{LDM}.Decoder", "params": DD},
        regularizer_config=REGULARIZER,
        **options,
    )


@pytest.mark.parametrize("name", package.HOMES)
def test_every_name_is_importable_from_the_package(name: str) -> None:
    if name == "AutoEncoderKL":
        pytest.importorskip("lightning", reason="the trainable model needs it")
    value = getattr(package, name)
    assert value.__name__ == name
    assert name in dir(package)
    assert not (Path(package.__file__).parent / f"{name}.py").exists()  # else the file would hide it once imported


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'AutoencoderKLL'"):
        _ = package.AutoencoderKLL


def test_importing_everything_needs_no_extra() -> None:
    script = (
        "import sys\nsys.modules.update(lightning=None, pytorch_lightning=None)\nfrom exact_vae.vae_model import *\n"
    )
    script += "print(AutoencoderKL.__name__, get_obj_from_str('x.Encoder').__name__)\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["AutoencoderKL", "Encoder"]


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = (
        "import sys, exact_vae.vae_model\n"
        "print(sorted({'torch', 'numpy', 'PIL', 'safetensors', 'lightning'} & set(sys.modules)))\n"
        "from exact_vae.vae_model import InputError\nprint('torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["[]", "False"]


def test_an_engines_first_arguments_are_those_of_its_base() -> None:
    model = engine(0.9, "val/rec_loss", "image")
    assert (model.use_ema, model.ema_decay, model.monitor, model.input_key) == (True, 0.9, "val/rec_loss", "image")
    assert "encoderconv_inweight" in dict(model.model_ema.named_buffers())
    assert engine(None, None).use_ema is False
    assert engine(None, input_key="png").input_key == "png"


def test_kl_models_take_embed_dim_and_ddconfig_by_position() -> None:
    loss = {"target": "torch.nn.Identity"}
    for model in (AutoencoderKL(5, DD), AutoencoderKL(5, DD, loss), AutoencoderKL(embed_dim=5, ddconfig=DD)):
        assert model.embed_dim == 5
        assert model.encode(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 4, 4)
    assert AutoencoderKL(5, DD, loss).loss_config == loss
    assert AutoencodingEngineLegacy(5, DD, regularizer_config=REGULARIZER).post_quant_conv.in_channels == 5
    for wrong in ((DD, None, 4), (DD, 4), (4, None)):
        with pytest.raises(TypeError, match=r"AutoencoderKL: expected embed_dim, then ddconfig, got .*: name the"):
            AutoencoderKL(*wrong)


@pytest.mark.parametrize("option", ["ckpt_path", "optimizer_config", "lr_g_factor", "trainable_ae_params", "ema_dekay"])
def test_what_no_model_takes_is_named_with_where_it_belongs(option: str) -> None:
    text = f"expected its arguments, .* got {option}: open weights by load_vae, train by AutoEncoderKL"
    for make in (partial(AutoencoderKL, 4, DD), engine, AbstractAutoencoder):
        with pytest.raises(TypeError, match=text):
            make(**{option: None})


def test_parameters_of_an_autoencoder_are_a_list() -> None:
    model = AutoencoderKL(5, DD)
    parameters = model.get_autoencoder_params()
    assert type(parameters) is list
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))
    before = model.post_quant_conv.weight.detach().clone()
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    model(torch.rand(1, 3, 8, 8))[1].sum().backward()
    optimizer.step()
    assert not model.post_quant_conv.weight.equal(before)


def test_batches_of_images_and_labels_give_their_images() -> None:
    model, x = AutoencoderKL(5, DD), torch.rand(2, 3, 8, 8)
    assert model.get_input((x, torch.tensor([0, 1]))) is x
    assert model.get_input([x, {"name": "a"}]) is x
    for wrong in ([], ("a", x), 3):
        with pytest.raises(
            InputError, match=r"expected a floating point tensor in -1\.\.1, got (list|tuple|int)"
        ) as caught:
            model.get_input(wrong)  # type: ignore[arg-type]
        assert "tensor(" not in str(caught.value)


@pytest.mark.parametrize("kind", [Encoder, Decoder, Model, VideoDecoder])
@pytest.mark.parametrize("linear", [False, True])
def test_networks_keep_their_arguments(kind: type[nn.Module], linear: bool) -> None:
    shared: dict[str, Any] = DD | {"dropout": 0.25, "resamp_with_conv": False, "use_linear_attn": linear}
    if kind is Model:
        del shared["z_channels"]
    if kind is VideoDecoder and linear:
        shared["time_mode"] = "only-last-conv"
    model: Any = kind(**shared)
    wanted = shared | {"ch_mult": (1, 2), "attn_resolutions": (8,), "attn_type": "linear" if linear else "vanilla"}
    del wanted["num_groups"]
    assert {name: getattr(model, name) for name in wanted} == wanted
    assert model.num_resolutions == 2


def test_resampling_layers_keep_their_arguments() -> None:
    for layer in (Upsample(4, True), Downsample(4, True)):
        assert (layer.in_channels, layer.with_conv, layer.conv.in_channels) == (4, True, 4)


def test_the_activation_of_a_block_is_swish_and_another_one_is_used() -> None:
    block, x = ResnetBlock(in_channels=4, num_groups=2, temb_channels=3).double(), torch.randn(1, 4, 3, 3).double()
    temb = torch.randn(1, 3).double()

    def by_hand(act: Any) -> torch.Tensor:
        h = block.conv1(act(block.norm1(x))) + block.temb_proj(act(temb))[:, :, None, None]
        return x + block.conv2(act(block.norm2(h)))

    with torch.no_grad():
        assert type(block.swish) is nn.SiLU
        torch.testing.assert_close(block(x, temb), by_hand(functional.silu), rtol=1e-12, atol=1e-12)
        block.swish = nn.Tanh()
        torch.testing.assert_close(block(x, temb), by_hand(torch.tanh), rtol=1e-12, atol=1e-12)
    decoder = Decoder(**DD).eval()
    build_program(decoder)
    decoder.mid.block_1.swish = nn.Identity()
    with pytest.raises(UnsupportedModule, match=r"mid\.block_1\.swish: expected SiLU, got Identity"):
        build_program(decoder)


def test_configurations_name_this_packages_classes_and_torchs() -> None:
    for target, kind in {
        "Encoder": Encoder,
        "sgm.modules.diffusionmodules.model.Decoder": Decoder,
        "sgm.modules.autoencoding.temporal_ae.VideoDecoder": VideoDecoder,
        "ldm.modules.diffusionmodules.model.Model": Model,
        "diffusers.AutoencoderTiny": AutoencoderTiny,
        "sgm.models.autoencoder.AutoencoderKLInferenceWrapper": AutoencoderKL,
        "torch.nn.Identity": nn.Identity,
        "torch.nn.modules.linear.Linear": nn.Linear,
        "torch.optim.Adam": torch.optim.Adam,
        "torch.optim.lr_scheduler.StepLR": torch.optim.lr_scheduler.StepLR,
        "torch.nn.Upsample": nn.Upsample,
        "ldm.modules.diffusionmodules.model.Upsample": Upsample,
    }.items():
        assert get_obj_from_str(target) is kind, target
    made = instantiate_from_config({"target": f"{LDM}.Encoder", "params": DD})
    assert type(made) is Encoder
    assert made.z_channels == 3
    assert type(instantiate_from_config({"target": "torch.nn.ReLU"})) is nn.ReLU
    assert instantiate_from_config("__is_first_stage__") is None
    with pytest.raises(KeyError, match="`target`"):
        instantiate_from_config({"params": DD})
    mode = instantiate_from_config(
        {"target": "sgm.models.autoencoder.AutoencoderKLModeOnly", "params": {"embed_dim": 4, "ddconfig": DD}}
    )
    assert type(mode) is AutoencoderKL
    x = torch.rand(1, 3, 8, 8)
    assert mode.encode(x).equal(mode.encode(x))


NOT_OURS = (
    *("os.system", "subprocess.Popen", "builtins.eval", "exact_vae.vae_model.import_module", ""),
    *("torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "torch.nn.functional.os.system"),
    *("torch.nn.init.normal_", "torch.nn.Nothing"),
)


@pytest.mark.parametrize("target", NOT_OURS)
def test_configurations_name_nothing_else(target: str) -> None:
    for ask in (get_obj_from_str, lambda name: instantiate_from_config({"target": name})):
        with pytest.raises(ValueError, match=r"configuration: expected a (target among|class of torch)") as caught:
            ask(target)
        assert "\n" not in str(caught.value)


def test_engines_are_built_of_torchs_layers_too() -> None:
    model = AutoencodingEngine(
        encoder_config={"target": "torch.nn.Identity"},
        decoder_config={"target": "torch.nn.Identity"},
        regularizer_config={"target": "sgm.modules.autoencoding.regularizers.IdentityRegularizer"},
    )
    x = torch.rand(1, 3, 4, 4)
    assert all(part.equal(x) for part in model(x)[:2])
    assert type(engine().regularization) is DiagonalGaussianRegularizer
