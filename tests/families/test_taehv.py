"""TAEHV and its kin: clips frame by frame as the original runs them, in any memory; whose latents they are."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae, save
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.tests.exact.test_planner_prediction import AMPLE, META, assert_predicted
from exact_vae.tests.exactness import assert_exact
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.tests.families.test_wan import noise
from exact_vae.tests.families.test_wan_clips import by_engine, plans
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.errors import InputError, MemoryBudgetError
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.plan.search import make_plan
from exact_vae.vae_model.families.coder import Coder
from exact_vae.vae_model.families.table import decoder_of, encoder_of
from exact_vae.vae_model.families.taehv.config import FORMATS, NAMES, TAEHVConfig, formats_of, taehv_elements
from exact_vae.vae_model.families.taehv.model import TAEHV
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("no_gradients", "one_thread")

KINDS = ["TAEW2.1, TAEHV", "TAEW2.2", "TAELTX"]
SHAPES = ((1, 3, 4), (2, 5, 3), (3, 1, 6), (5, 4, 3), (9, 2, 2))
"""Frames of latents, rows and columns: 1, 5, 9, 17 and 33 frames where there are four to one of latents."""


@cache
def model(kind: str) -> TAEHV:
    return random_model(ROWS[kind]).double()


def coder_of(direction: str, whole: TAEHV) -> Coder:
    return decoder_of(whole) if direction == "decode" else encoder_of(whole, whole.config.latent_channels)


def clip(direction: str, kind: str, shape: tuple[int, int, int], batch: int = 1) -> Tensor:
    """(B, C, T, h, w), with a slope, motion and an outlier."""
    config, (frames, height, width) = model(kind).config, shape
    channels, (f, t) = config.latent_channels, (config.factor, config.time_factor)
    if direction == "encode":
        channels, frames, height, width = 3, t * (frames - 1) + 1, f * height, f * width
    x = noise(batch, channels, frames, height, width, dtype=torch.float64)
    x += torch.linspace(-1, 1, frames, dtype=torch.float64)[:, None, None]
    x[0, 0, -1, 0, -1] = 12.0
    return x


def one_by_one(layers: Any, frames: list[Tensor]) -> list[Tensor]:
    """Frames (1, C, h, w) as they come, as the original runs them: every block keeps the last one that it saw."""
    for layer in layers:
        made: list[Tensor] = []
        kind = type(layer).__name__
        if kind == "MemBlock":
            for number, frame in enumerate(frames):
                past = frames[number - 1] if number else torch.zeros_like(frame)
                made.append(layer.act(layer.conv(torch.cat([frame, past], 1)) + frame))
        elif kind == "TPool":
            for number in range(0, len(frames), layer.stride):
                made.append(layer.conv(torch.cat(frames[number : number + layer.stride], 1)))
        elif kind == "TGrow":
            made = [part for frame in frames for part in layer.conv(frame).chunk(layer.stride, 1)]
        else:
            made = [layer(frame) for frame in frames]
        frames = made
    return frames


def original(direction: str, whole: TAEHV, x: Tensor) -> Tensor:
    """(B, C, T, h, w) -> likewise: the network's own latents, images in 0..1 within."""
    patch, t, clips = whole.config.patch, whole.config.time_factor, list[Tensor]()
    for one in x:
        frames = [frame[None] for frame in one.unbind(1)]
        if direction == "decode":
            made = one_by_one(whole.decoder, frames)[t - 1 :]
            made = [functional.pixel_shuffle(frame, patch) * 2 - 1 for frame in made]
        else:
            frames = [functional.pixel_unshuffle((frame + 1) / 2, patch) for frame in frames]
            frames += [frames[-1]] * (-len(frames) % t)
            made = one_by_one(whole.encoder, frames)
        clips.append(torch.cat(made).transpose(0, 1))
    return torch.stack(clips)


# -- equal -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_model_equals_the_original(kind: str, direction: str, shape: tuple[int, int, int]) -> None:
    x = clip(direction, kind, shape, batch=2)
    actual = model(kind).decode(x) if direction == "decode" else model(kind).encode(x)
    assert_exact(actual, original(direction, model(kind), x))


@pytest.mark.parametrize("host_bytes", [0, AMPLE], ids=["device alone", "with host memory"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_engine_equals_the_original_under_every_budget(
    kind: str, direction: str, shape: tuple[int, int, int], host_bytes: int
) -> None:
    x, coder = clip(direction, kind, shape)[0], coder_of(direction, model(kind))
    expected = original(direction, model(kind), x[None])[0]
    prepared = coder.prepare(x.transpose(0, 1).clone()).transpose(0, 1)
    for plan in plans(coder.program, prepared, host_bytes):
        assert_exact(by_engine(coder, prepared, plan), expected)
        assert plan.turned == (shape[0] > 1 and x.shape[3] > x.shape[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("direction", ["decode", "encode"])
def test_other_number_formats(direction: str, dtype: torch.dtype) -> None:
    """float32 within the contract, 16 bits within 1.15 times what the untiled model errs."""
    x = clip(direction, KINDS[0], (3, 6, 5)).to(dtype)
    narrow, wide = random_model(ROWS[KINDS[0]]).to(dtype), random_model(ROWS[KINDS[0]]).to(dtype).double()
    coder, truth = coder_of(direction, narrow), original(direction, wide, x.double())[0]
    untiled = (narrow.decode(x) if direction == "decode" else narrow.encode(x))[0]
    prepared = coder.prepare(x[0].transpose(0, 1).clone()).transpose(0, 1)
    for plan in plans(coder.program, prepared, 0)[::2]:
        assert_exact(by_engine(coder, prepared, plan), untiled, truth)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_leave_early_and_are_those_of_the_whole_clip(kind: str) -> None:
    vae = load_vae(random_model(ROWS[kind]), device="cpu", dtype="float32")
    z = clip("decode", kind, (9, 4, 3)).float()
    whole, groups = vae.decode(z)[0], list(vae.decode_frames(z))
    assert len(groups) > 1
    assert vae.last_plan.past_bytes > 0
    assert_exact(torch.cat(groups), whole)


@pytest.mark.parametrize("method", ["exact", "untiled"])
def test_a_vae_takes_and_gives_clips(method: str, caplog: pytest.LogCaptureFixture) -> None:
    vae = load_vae(random_model(ROWS[KINDS[0]]), device="cpu", dtype="float32")
    pixels = torch.rand(1, 7, 24, 16, 3)
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        latent = vae.encode(pixels, method=method)
    assert "left out" not in caplog.text  # the last one is taken once more
    assert_exact(latent, original("encode", vae.first_stage_model, pixels.permute(0, 4, 1, 2, 3) * 2 - 1))
    assert vae.decode(latent, method).shape == (1, 5, 24, 16, 3)


# -- memory ------------------------------------------------------------------------------------------------------------


@cache
def full_width(direction: str) -> Any:
    with META:
        large = TAEHV(TAEHVConfig(16, 64, (256, 128, 64, 64))).half().eval()
    return coder_of(direction, large).program


@pytest.mark.parametrize("host_bytes", [0, AMPLE], ids=["device alone", "with host memory"])
@pytest.mark.parametrize(
    ("direction", "shape"),
    [("decode", (3, 16, 24, 16)), ("decode", (5, 16, 14, 9)), ("encode", (9, 3, 128, 96))],
    ids=str,
)
def test_the_plan_is_what_the_meter_sees(direction: str, shape: Any, host_bytes: int) -> None:
    program = full_width(direction)
    most = make_plan(program, shape, torch.float16, AMPLE, device_type="meta").peak_bytes
    with pytest.raises(MemoryBudgetError) as refused:
        make_plan(program, shape, torch.float16, 1, host_bytes, device_type="meta")
    least = refused.value.needed_bytes or 0
    for share in (1, 0.5, 0.2, 0):
        budget = int(least + share * max(0, most - least))
        assert_predicted(
            program, make_plan(program, shape, torch.float16, budget, host_bytes, device_type="meta"), shape
        )


def test_a_tenth_of_the_untiled_peak_is_enough_and_known_before() -> None:
    narrow = random_model(ROWS[KINDS[0]])
    z = torch.randn(1, 16, 5, 40, 24, generator=torch.Generator().manual_seed(5))
    with LiveTensorMeter() as meter:
        untiled = narrow.decode(z)[0]
    told = taehv_elements(narrow.config, "decode") * untiled[0].numel() * 4
    assert 0.95 <= meter.peak_bytes / told <= 1.4
    coder = decoder_of(narrow)
    plan = make_plan(coder.program, (5, 16, 40, 24), torch.float32, meter.peak_bytes // 10)
    prepared = coder.prepare(z[0].transpose(0, 1).clone()).transpose(0, 1)
    assert_exact(by_engine(coder, prepared, plan), untiled)


# -- whose latents -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_names_tell_whose_latents_they_are(tmp_path: Path, name: str) -> None:
    kind = next(
        kind
        for kind in KINDS
        if NAMES[name] in formats_of(model(kind).config.latent_channels)[:-1] or kind == KINDS[-1]
    )
    if NAMES[name] == "hunyuan_video15":
        tensors = TAEHV(TAEHVConfig(32, 8, (8, 8, 8, 8), patch=2)).state_dict()
    else:
        tensors = random_model(ROWS[kind]).state_dict()
    path = tmp_path / f"{name}.safetensors"
    save_file(tensors, path)
    vae = load_vae(path, device="cpu", dtype="float32")
    assert vae.loaded.config.latent_format == NAMES[name]
    one, z = FORMATS[NAMES[name]], torch.randn(1, vae.latent_channels, 3, 2, 2)
    numbers = [torch.tensor(each)[:, None, None, None] for each in (one.means, one.deviations)] if one.means else None
    own = (z - numbers[0]) / numbers[1] if numbers else (z - one.shift) * one.scale
    expected = original("decode", vae.first_stage_model, own)
    assert_exact(vae.decode(z).permute(0, 4, 1, 2, 3) * 2 - 1, expected.clamp(-1, 1))
    saved = tmp_path / "other.safetensors"
    save(vae.first_stage_model, saved)
    assert load_model(saved).config == vae.loaded.config


def test_without_a_name_latents_are_the_network_s_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "tiny.safetensors"
    save_file(random_model(ROWS[KINDS[0]]).state_dict(), path)
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        vae = load_vae(path, device="cpu", dtype="float32")
    assert "say latent_format (--latent-format): wan21, hunyuan_video, raw" in caplog.text
    z = torch.randn(1, 16, 2, 2, 2)
    assert_exact(
        vae.decode(z).permute(0, 4, 1, 2, 3) * 2 - 1, original("decode", vae.first_stage_model, z).clamp(-1, 1)
    )
    with pytest.raises(
        InputError, match=r"^latent_format: expected one of wan21, hunyuan_video, raw for latents of 16"
    ):
        load_vae(path, device="cpu", latent_format="sdxl")
    assert load_vae(path, device="cpu", latent_format="wan21").loaded.config.latent_format == "wan21"


@pytest.mark.parametrize(
    ("name", "act_fn"),
    [("taehv1_5", "relu"), ("lighttaehy1_5", "leaky_relu"), ("lighttae_hv15", "leaky_relu"), ("other", "relu")],
)
def test_activations_of_32_channels_are_told_by_the_name_or_said_to_be_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, act_fn: str
) -> None:
    path = tmp_path / f"{name}.safetensors"
    whole = TAEHV(TAEHVConfig(32, 8, (8, 8, 8, 8), patch=2, act_fn=act_fn, latent_format="raw"))
    save_file(whole.state_dict(), path)
    with caplog.at_level(logging.INFO, logger="exact_vae.vae_model.notes"):
        vae = load_vae(path, device="cpu", dtype="float32", latent_format="raw")
    z = torch.randn(1, 32, 2, 3, 2)
    assert_exact(vae.decode(z).permute(0, 4, 1, 2, 3) * 2 - 1, whole.decode(z).clamp(-1, 1))
    assert ("taken are act_fn as relu" in caplog.text) == (name == "other")


def test_minimax_h3_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "taeh3.safetensors"
    save_file(TAEHV(TAEHVConfig(24, 8, (8, 8, 8, 8), patch=2)).state_dict(), path)
    with pytest.raises(ValueError, match=r"MiniMax H3's, which runs by groups of 17 frames"):
        load_model(path)


# -- the host's --------------------------------------------------------------------------------------------------------


class Host(TAEHV):
    """With the host's attributes: images in 0..1, and latents that its format converts."""

    def __init__(self, whole: TAEHV) -> None:
        torch.nn.Module.__init__(self)
        self.encoder, self.decoder, self.patch_size, self.is_h3 = (
            whole.encoder,
            whole.decoder,
            whole.config.patch,
            False,
        )

    def process_in(self, z: Tensor) -> Tensor:
        return z * 0.476986

    def process_out(self, z: Tensor) -> Tensor:
        return z / 0.476986


def hosted(kind: str) -> Any:
    """Not one of ours: a class of that name of somebody else's."""
    made: Any = type("TAEHV", (torch.nn.Module,), dict(vars(Host)) | {"__init__": Host.__init__})
    return made(model(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_the_host_s_model_is_read(kind: str) -> None:
    theirs, z, x = hosted(kind), clip("decode", kind, (3, 4, 3)), clip("encode", kind, (3, 3, 2))
    coder = decoder_of(theirs)
    prepared = coder.prepare(z[0].transpose(0, 1).clone()).transpose(0, 1)
    plan = make_plan(coder.program, tuple(prepared.transpose(0, 1).shape), torch.float64, AMPLE)
    expected = (original("decode", model(kind), z * 0.476986)[0] + 1) / 2
    assert_exact(by_engine(coder, prepared, plan), expected)
    coder, pixels = encoder_of(theirs, model(kind).config.latent_channels), (x[0] + 1) / 2
    plan = make_plan(coder.program, tuple(pixels.transpose(0, 1).shape), torch.float64, AMPLE)
    assert_exact(by_engine(coder, pixels, plan), original("encode", model(kind), x)[0] / 0.476986)


def test_what_is_not_known_of_the_host_s_is_refused_by_name() -> None:
    theirs = hosted(KINDS[0])
    theirs.is_h3 = True
    with pytest.raises(UnsupportedModule, match="MiniMax H3"):
        decoder_of(theirs)
    other = hosted(KINDS[0])
    other.decoder = torch.nn.Sequential(*other.decoder)
    other.decoder[6] = torch.nn.Upsample(scale_factor=1)
    with pytest.raises(UnsupportedModule, match=r"^decoder\.6: expected nearest x2"):
        decoder_of(other)
    other.decoder[2] = torch.nn.GELU()
    with pytest.raises(UnsupportedModule, match=r"^decoder\.2: expected ReLU, or LeakyReLU of 0\.2, got GELU"):
        decoder_of(other)
