"""The Wan 2.1 and Qwen-Image autoencoder: its files, and pictures equal to diffusers' and exact in strips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.tests.exact.test_planner_prediction import AMPLE, META, assert_predicted
from exact_vae.tests.exact.test_programs_whole import run
from exact_vae.tests.exactness import TOLERANCE, assert_exact
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.tests.families.test_diffusers_equality import CLOSE
from exact_vae.vae_model.checkpoint.convert import convert_vae
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.exact.schedule import uniform
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from exact_vae.vae_model.families.wan.config import WanConfig
from exact_vae.vae_model.families.wan.layers import RMS_norm
from exact_vae.vae_model.families.wan.model import WanVAE
from exact_vae.vae_model.files.latents import read_latent, write_latent
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_gradients")

ROW = ROWS["Wan 2.1, Qwen-Image"]


@pytest.fixture
def model() -> Any:
    return random_model(ROW)


def noise(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Noise on a slope: white noise alone hides mistakes at borders."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return x + torch.linspace(-1, 1, shape[-1], dtype=dtype)


# -- diffusers ---------------------------------------------------------------------------------------------------------

CLASSES: list[tuple[str, dict[str, Any]]] = [
    ("AutoencoderKLWan", {}),
    ("AutoencoderKLWan", {"decoder_base_dim": 12, "num_res_blocks": 1, "temperal_downsample": [True, False, True]}),
    ("AutoencoderKLQwenImage", {}),
    ("AutoencoderKLQwenImage", {"input_channels": 4, "num_res_blocks": 3, "dim_mult": [1, 2, 2], "z_dim": 5}),
]
both_classes = pytest.mark.parametrize(("name", "options"), CLASSES, ids=str)


def theirs(name: str, options: dict[str, Any]) -> Any:
    diffusers = pytest.importorskip("diffusers")
    values = {"base_dim": 8, "z_dim": 4, "temperal_downsample": [False, True, True], **options}
    values["temperal_downsample"] = values["temperal_downsample"][: len(values.get("dim_mult", [0] * 4)) - 1]
    model = getattr(diffusers, name)(**values).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(4)
    for key, tensor in model.named_parameters():
        values = torch.randn(tensor.shape, generator=generator)
        scale = 0.2 if tensor.ndim == 1 or key.endswith("gamma") else tensor[0].numel() ** -0.5
        tensor.copy_(values * scale + key.endswith("gamma"))
    return model


@both_classes
@pytest.mark.parametrize("layout", ["diffusers", "wan"])
def test_equals_diffusers(name: str, options: dict[str, Any], layout: str) -> None:
    vae = theirs(name, options)
    loaded = load_model(vae.state_dict())
    if layout == "wan":  # converted, and read again
        loaded = load_model(to_layout(loaded.model, "wan"))
    assert (loaded.family, loaded.layouts) == ("wan", (layout,))
    ours: Any = loaded.model
    channels, factor = loaded.config.in_channels, loaded.config.factor
    x = torch.rand(2, channels, 6 * factor, 4 * factor, generator=torch.Generator().manual_seed(6)) * 2 - 1
    expected = vae.encode(x[:, :, None]).latent_dist.mode()[:, :, 0]
    assert expected.std() > 0.1  # A comparison of zeros would show nothing.
    torch.testing.assert_close(ours.encode(x), expected, **CLOSE)
    z = noise(2, vae.config.z_dim, 5, 3)
    # diffusers clamps the image.
    torch.testing.assert_close(ours.decode(z).clamp(-1, 1), vae.decode(z[:, :, None]).sample[:, :, 0], **CLOSE)


@both_classes
def test_diffusers_computes_the_same_with_what_we_write(name: str, options: dict[str, Any]) -> None:
    source, target = theirs(name, options), theirs(name, options)
    written = to_layout(load_model(to_layout(load_model(source.state_dict()).model, "wan")).model, "diffusers")
    assert written.keys() == source.state_dict().keys()  # with the weights over time, which single frames do not need
    assert all(torch.equal(written[key], tensor) for key, tensor in source.state_dict().items())
    for tensor in target.parameters():
        tensor.zero_()
    target.load_state_dict(written, strict=True)
    video = noise(1, source.config.z_dim, 2, 3, 2)
    assert torch.equal(target.decode(video).sample, source.decode(video).sample)


@both_classes
def test_a_diffusers_folder_keeps_its_class(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    vae = theirs(name, options)
    vae.save_pretrained(tmp_path / "theirs")
    convert_vae([str(tmp_path / "theirs")], tmp_path / "ours", "diffusers")
    again = type(vae).from_pretrained(tmp_path / "ours", low_cpu_mem_usage=False).eval()
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in vae.state_dict().items())
    for field, value in vae.config.items():
        assert field.startswith("_") or again.config[field] == value, field
    again.save_config(tmp_path / "ours")
    text = (tmp_path / "ours" / "config.json").read_text().replace('"attn_scales": []', '"attn_scales": [1.0]')
    (tmp_path / "ours" / "config.json").write_text(text)
    with pytest.raises(VAEFileError, match=r"expected attn_scales \[\] in its configuration, got \[1.0\]"):
        load_model(tmp_path / "ours")


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ROW.layouts)
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_file(model: Any, half: str, layout: str) -> None:
    config = WanConfig(16, None, ROW.config.decoder, (False, True, True))
    if half == "encoder":
        config = WanConfig(16, ROW.config.encoder, None, (False, True, True))
    conv = "conv1." if half == "encoder" else "conv2."
    part = WanVAE(config)
    part.load_state_dict({k: v for k, v in model.state_dict().items() if k.startswith((half, conv))})
    loaded: Any = load_model(to_layout(part, layout))
    assert loaded.config == config
    x = noise(1, 16, 4, 3) if half == "decoder" else noise(1, 3, 32, 24)
    direction, other = ("decode", "encode") if half == "decoder" else ("encode", "decode")
    assert torch.equal(getattr(loaded.model, direction)(x), getattr(model, direction)(x))
    with pytest.raises(RuntimeError, match="expected a model with"):
        getattr(loaded.model, other)(x)


@pytest.mark.parametrize("layout", ROW.layouts)
def test_a_file_with_names_of_wan_2_2_is_taken_for_none_of_these(model: Any, layout: str) -> None:
    more = {"wan": "decoder.upsamples.0.upsamples.0.residual.2.weight"}
    more["diffusers"] = "decoder.up_blocks.0.upsampler.resample.1.weight"
    with pytest.raises(VAEFileError, match=r"expected a whole Wan 2\.2 autoencoder in .* layout, .*: choose"):
        load_model(to_layout(model, layout) | {more[layout]: torch.zeros(1)})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"decoder.conv1.bias": None}, "missing decoder.conv1.bias"),
        ({"decoder.upsamples.3.time_conv.bias": None}, "missing decoder.upsamples.3.time_conv.bias"),
        ({"encoder.middle.2.residual.9.gamma": torch.zeros(1)}, r"unknown encoder.middle.2.residual.9.gamma"),
        ({"encoder.conv1.weight": torch.zeros(8, 3, 1, 3, 3)}, r"shape \(8, 3, 1, 3, 3\) instead of \(8, 3, 3, 3, 3\)"),
    ],
)
def test_damaged_files_are_refused(model: Any, changes: dict[str, Tensor | None], text: str) -> None:
    stored = to_layout(model, "wan") | changes
    with pytest.raises(VAEFileError, match=rf"expected a whole Wan 2\.1 or Qwen-Image autoencoder in wan .*{text}"):
        load_model({key: tensor for key, tensor in stored.items() if tensor is not None})


# -- single frames -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["untiled", "exact", "blend"])
def test_vae_takes_frames_and_images(model: Any, method: str) -> None:
    vae = load_vae(to_layout(model, "wan"), device="cpu", dtype="float32")
    assert (vae.latent_dim, vae.latent_channels, vae.downscale_ratio) == (3, 16, 8)
    pixels = torch.rand(2, 70, 50, 3, generator=torch.Generator().manual_seed(2))
    latent = vae.encode(pixels, method)
    assert latent.shape == (2, 16, 1, 8, 6)
    expected = model.encode(pixels[:, 3:67, 1:49].movedim(-1, 1) * 2 - 1)
    torch.testing.assert_close(latent[:, :, 0], expected, rtol=0, atol=1e-4)
    assert torch.equal(vae.encode(pixels[:, None], method), latent)
    images = vae.decode(latent, method)
    expected = ((model.decode(latent[:, :, 0]) + 1) / 2).clamp(0, 1).movedim(1, -1)
    torch.testing.assert_close(images, expected[:, None], rtol=0, atol=1e-4)  # what has an axis of frames keeps it
    assert torch.equal(vae.decode(latent[:, :, 0], method), images[:, 0])


def test_a_latent_file_of_a_frame(tmp_path: Path) -> None:
    z = noise(1, 16, 1, 3, 4)
    write_latent(z, tmp_path / "frame.latent")
    assert torch.equal(read_latent(tmp_path / "frame.latent"), z)


# -- the engine --------------------------------------------------------------------------------------------------------

SCHEDULES: list[dict[str, Any]] = [
    {},
    {"store_hidden": False, "store_enlarged": False},
    {"store_hidden": False, "store_enlarged": False, "store_blocks": False},
    {"device_share": 0.4, "stream_attention": True},
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_every_schedule_strip_height_and_odd_size(model: Any, direction: str, dtype: torch.dtype) -> None:
    model = model.to(dtype)
    half = decoder_of(model) if direction == "decode" else encoder_of(model, 16)
    f = 1 if direction == "decode" else 8
    schedules = SCHEDULES if dtype == torch.float64 else SCHEDULES[::2]
    for height, width in ((1, 1), (7, 5)):
        x = noise(1, half.program.in_channels, height * f, width * f, dtype=dtype)
        x[0, 0, 0, -1] = 20.0
        expected = getattr(model, direction)(x)
        for options in schedules:
            for strip_rows in (1, 3, 1000):
                out = half.finish(run(half.program, uniform(4, strip_rows, **options), x))
                assert_exact(out, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_err_no_more_than_untiled(model: Any, dtype: torch.dtype) -> None:
    z = noise(1, 16, 12, 10)
    model = model.to(dtype)
    untiled = model.decode(z.to(dtype))
    exact = run(decoder_of(model).program, uniform(4, 8), z.to(dtype))
    truth = model.double().decode(z.to(dtype).double())
    assert_exact(exact, untiled, truth)


@pytest.mark.parametrize("share", [1.0, 0.4])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_plans_of_the_full_width(direction: str, share: float) -> None:
    levels = LevelsConfig(96, (96, 192, 384, 384), 2)
    with META:
        model: Any = WanVAE(WanConfig(16, levels, levels, (False, True, True))).half().eval()
    program = (decoder_of(model) if direction == "decode" else encoder_of(model, 16)).program
    shape = (1, 16, 25, 33) if direction == "decode" else (1, 3, 200, 264)
    resident = make_plan(program, shape, torch.float16, AMPLE, device_type="meta")
    budget = int(resident.peak_bytes * (0.5 + 0.5 * share))
    plan = make_plan(program, shape, torch.float16, budget, device_type="meta")
    assert plan.work_ratio <= 1.01  # nothing is computed twice, whatever is stored
    assert_predicted(program, plan, shape)


def test_norms_learn_as_they_compute(model: Any) -> None:
    norm = RMS_norm(6).double()
    norm.gamma.data = noise(6, 1, 1, 1, dtype=torch.float64)
    x = noise(2, 6, 3, 4, dtype=torch.float64)
    x[0, :, 0, 0] = 0
    expected = torch.nn.functional.normalize(x, dim=1) * 6**0.5 * norm.gamma[:, 0]
    with torch.enable_grad():
        learning = norm(x.requires_grad_())
        learning.square().sum().backward()
    assert norm.gamma.grad is not None
    for actual in (norm(x.detach()), learning.detach()):
        torch.testing.assert_close(actual, expected.detach(), rtol=0, atol=1e-12)
