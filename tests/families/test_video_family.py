"""Stable Video Diffusion's autoencoder as a family: files, equality with diffusers, decoding of frame groups."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import VAE, load_vae
from exact_vae.__main__ import main
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import InputError, MemoryBudgetError, VAEFileError
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL, build_kl
from exact_vae.vae_model.families.ldm.config import LevelsConfig
from exact_vae.vae_model.families.video.model import VideoConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

# float32, the same operations in another order of sums; what comes out is about 1.
CLOSE = {"rtol": 0, "atol": 1e-5}
BARE = {"quant_conv": False, "post_quant_conv": False}


pytestmark = pytest.mark.usefixtures("one_thread")


def randomise(model: nn.Module, seed: int) -> Any:
    """Every weight random, norms, biases and shares included, so that activations stay about 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict(keep_vars=True).items():
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data = noise / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.2 * noise
        if name.endswith("mix_factor"):
            tensor.data = noise
    for layer in model.modules():
        if isinstance(layer, nn.GroupNorm):
            layer.weight.data += 1
    return model.eval()


def make_ours(*widths: int, seed: int = 130, blocks: int = 2, groups: int = 8, **options: Any) -> AutoencoderKL:
    levels = LevelsConfig(widths[0], widths, blocks)
    return randomise(build_kl(VideoConfig(4, 4, levels, levels, num_groups=groups, **{**BARE, **options})), seed)


@pytest.fixture(scope="module")
def model() -> AutoencoderKL:
    return make_ours(16, 32, 32, groups=16).requires_grad_(False)


@pytest.fixture
def vae(model: AutoencoderKL) -> VAE:
    return load_vae(model.state_dict(), device="cpu", dtype="float32")


def make_theirs(*widths: int) -> Any:
    diffusers = pytest.importorskip("diffusers")
    return diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=widths, down_block_types=("DownEncoderBlock2D",) * len(widths), layers_per_block=2
    )


def assert_equal_models(ours: Any, theirs: Any, factor: int) -> None:
    generator = torch.Generator().manual_seed(131)
    z = torch.randn(6, 4, 3, 2, generator=generator)
    x = torch.rand(2, 3, 3 * factor, 2 * factor, generator=generator) * 2 - 1
    with torch.inference_mode():
        for frames in (6, 3, 2, 1):
            wanted = theirs.decode(z, num_frames=frames).sample
            assert wanted.std() > 0.1  # A comparison of zeros would show nothing.
            torch.testing.assert_close(ours.decode(z, timesteps=frames), wanted, **CLOSE)
        torch.testing.assert_close(ours.decode(z), theirs.decode(z, num_frames=6).sample, **CLOSE)
        wanted = theirs.encode(x).latent_dist.parameters
        assert wanted.std() > 0.1
        torch.testing.assert_close(ours.encode(x, unregularized=True)[0], wanted, **CLOSE)


@pytest.mark.parametrize("widths", [(32, 64), (64, 32, 96), (32, 32, 64, 64)])
def test_theirs_becomes_ours(widths: tuple[int, ...]) -> None:
    theirs = randomise(make_theirs(*widths), 132)
    loaded = load_model(theirs.state_dict())
    assert (loaded.family, loaded.layouts) == ("video", ("diffusers",))
    assert_equal_models(loaded.model, theirs, 2 ** (len(widths) - 1))
    written = to_layout(loaded.model, "diffusers")
    assert written.keys() == theirs.state_dict().keys()
    assert all(torch.equal(written[key], tensor) for key, tensor in theirs.state_dict().items())


@pytest.mark.parametrize("widths", [(32, 64), (32, 32, 64, 64)])
@pytest.mark.parametrize("quant_conv", [True, False])
def test_ours_becomes_theirs(widths: tuple[int, ...], quant_conv: bool) -> None:
    """Without a quant convolution, as in the original files, theirs gets one that changes nothing."""
    ours, theirs = make_ours(*widths, groups=32, quant_conv=quant_conv), make_theirs(*widths).eval()
    theirs.load_state_dict(to_layout(ours, "diffusers"), strict=True)
    assert_equal_models(ours, theirs, 2 ** (len(widths) - 1))


@pytest.mark.parametrize("layers", [1, 3])
def test_other_block_counts_of_theirs_are_refused(layers: int) -> None:
    """diffusers makes as many middle blocks as blocks of a level; the model has two, whatever the levels have."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKLTemporalDecoder(block_out_channels=(32,), layers_per_block=layers)
    with pytest.raises(VAEFileError, match=r"KL autoencoder with temporal decoder in diffusers layout"):
        load_model(theirs.state_dict())


@pytest.mark.parametrize("time_mode", ["all", "conv-only", "attn-only", "only-last-conv"])
@pytest.mark.parametrize("strategy", ["learned", "fixed"])
def test_files_tell_how_frames_are_mixed(tmp_path: Path, time_mode: str, strategy: str) -> None:
    ours = make_ours(16, 32, blocks=1, time_mode=time_mode, merge_strategy=strategy, video_kernel_size=(3, 1, 1))
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save(ours, first)
    loaded = load_model(first)
    mixes = time_mode in ("conv-only", "attn-only", "all")  # nothing is shared out in the last convolution
    assert (loaded.config.time_mode, loaded.family) == (time_mode, "video")  # pyright: ignore
    assert loaded.config.merge_strategy == strategy or not mixes  # pyright: ignore
    save(loaded.model, second)
    assert first.read_bytes() == second.read_bytes()
    z = torch.randn(4, 4, 2, 3)
    with torch.inference_mode():
        assert torch.equal(loaded.model.decode(z, timesteps=2), ours.decode(z, timesteps=2))  # pyright: ignore


def test_time_attention_has_no_place_in_diffusers_layout() -> None:
    with pytest.raises(InputError, match=r"layout diffusers: expected a place for decoder\.mid\.attn_1\."):
        to_layout(make_ours(16, time_mode="all"), "diffusers")


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_damaged_files_are_refused(model: AutoencoderKL, layout: str, prefix: str) -> None:
    stored = {prefix + key: tensor for key, tensor in to_layout(model, layout).items()}
    names = [key for key in stored if "mix" in key or "time" in key or "temporal" in key]
    assert len(names) > 20
    for name in names[:: len(names) // 6]:
        with pytest.raises(VAEFileError, match=re.escape(name)):
            load_model({key: tensor for key, tensor in stored.items() if key != name})
        with pytest.raises(VAEFileError, match="temporal decoder"):
            load_model({**stored, name: torch.zeros(7, 2)})
    with pytest.raises(VAEFileError, match="unknown"):
        load_model({**stored, f"{prefix}decoder.up.0.block.0.other.weight": torch.zeros(1)})


def test_half_a_model(model: AutoencoderKL) -> None:
    state = model.state_dict()
    decoder = load_model({key: tensor for key, tensor in state.items() if key.startswith("decoder.")})
    assert decoder.family == "video"
    encoder = load_model({key: tensor for key, tensor in state.items() if key.startswith("encoder.")})
    assert encoder.family == "kl"  # an image encoder as others


def test_info(tmp_path: Path, model: AutoencoderKL, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "svd.safetensors"
    save(model, path)
    assert main(["info", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["family"] == "KL autoencoder with temporal decoder"
    assert facts["layout"] == "ldm"
    assert facts["configuration"]["time_mode"] == "conv-only"
    assert facts["configuration"]["video_kernel_size"] == [3, 1, 1]
    assert facts["parameters"] == sum(tensor.numel() for tensor in load_file(path).values())
    stored = {f"first_stage_model.{key}": tensor for key, tensor in to_layout(model, "diffusers").items()}
    save_file(stored, path)
    assert main(["info", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "diffusers"


def wanted_images(model: AutoencoderKL, z: Tensor, timesteps: int | None) -> Tensor:
    with torch.inference_mode():
        return (model.decode(z, timesteps=timesteps).movedim(1, -1) / 2 + 0.5).clamp(0, 1)


@pytest.mark.parametrize("timesteps", [None, 6, 3, 1])
@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
def test_the_vae_decodes_groups(vae: VAE, model: AutoencoderKL, method: str, timesteps: int | None) -> None:
    z = torch.randn(6, 4, 3, 4, generator=torch.Generator().manual_seed(133))
    images = vae.decode(z, method, timesteps=timesteps)
    # One tile holds all of these small frames, so even "blend" computes what the model does.
    torch.testing.assert_close(images, wanted_images(model, z, timesteps), rtol=0, atol=1e-5)
    assert (images - wanted_images(model, z, 2)).abs().max() > 0.01


def test_more_frames_than_images_run_at_once(vae: VAE, model: AutoencoderKL) -> None:
    """Images run four at a time; frames that belong together are never parted."""
    z = torch.randn(9, 4, 2, 2, generator=torch.Generator().manual_seed(134))
    torch.testing.assert_close(vae.decode(z, "untiled"), wanted_images(model, z, None), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("timesteps", "chunks"), [(1, [4, 4]), (2, [4, 4]), (4, [4, 4]), (8, [8])])
def test_whole_groups_run_together(
    vae: VAE, monkeypatch: pytest.MonkeyPatch, timesteps: int, chunks: list[int]
) -> None:
    seen: list[int] = []
    decode = vae._decode_raw

    def watched(z: Tensor, **options: int) -> Tensor:
        seen.append(len(z))
        return decode(z, **options)

    monkeypatch.setattr(vae, "_decode_raw", watched)
    vae.decode(torch.zeros(8, 4, 2, 2), "untiled", timesteps=timesteps)
    assert seen == chunks


def test_groups_must_divide_the_batch(vae: VAE, small_vae: VAE) -> None:
    with pytest.raises(InputError, match="timesteps: expected at least 1, got 0: make it larger"):
        vae.decode(torch.zeros(6, 4, 2, 2), timesteps=0)
    for timesteps in (4, 12):
        with pytest.raises(InputError, match=f"expected a divisor of the batch of 6 frames, got {timesteps}"):
            vae.decode(torch.zeros(6, 4, 2, 2), timesteps=timesteps)
    with pytest.raises(InputError, match="timesteps: expected none for an image decoder, got 2"):
        small_vae.decode(torch.zeros(2, 4, 2, 2), timesteps=2)


@pytest.mark.parametrize("time_mode", ["all", "conv-only", "attn-only", "only-last-conv"])
@pytest.mark.parametrize("widths", [(16, 32), (32, 32, 64)])
def test_the_estimate_counts_all_frames_of_a_group(time_mode: str, widths: tuple[int, ...]) -> None:
    vae = load_vae(make_ours(*widths, time_mode=time_mode).state_dict(), device="cpu", dtype="float32")
    z = torch.randn(5, 4, 12, 10)
    with LiveTensorMeter() as meter:
        vae.decode(z, "untiled")
    predicted = vae.memory_used_decode(z.shape, torch.float32)
    assert 0.85 <= predicted / meter.peak_bytes <= 1.1
    assert vae.memory_used_decode((10, 4, 12, 10), torch.float32) == 2 * predicted
    with pytest.raises(MemoryBudgetError):
        vae.decode(z, "untiled", memory=predicted - 1)
    vae.decode(z, "untiled", memory=predicted // 5 + 1, timesteps=1)


def test_the_encoder_is_exact(vae: VAE, model: AutoencoderKL) -> None:
    pixels = torch.rand(2, 12, 20, 3, generator=torch.Generator().manual_seed(135))
    latents = vae.encode(pixels, tile_size=4)
    assert vae.last_plan is not None
    assert vae.last_report is not None
    assert vae.last_report.method == "exact"
    with torch.inference_mode():
        wanted = model.encode(pixels.movedim(-1, 1) * 2 - 1, unregularized=True)[0][:, :4]
    torch.testing.assert_close(latents, wanted, rtol=0, atol=2e-5 * float(wanted.abs().max()))


def test_chunks_hold_whole_groups() -> None:
    """Row A22: a chunk that cut through a group would mix other frames than the whole batch does."""
    config = VideoConfig(4, 4, None, LevelsConfig(16, (16, 32), 1), num_groups=8, **BARE)
    whole: Any = randomise(build_kl(config), 136)
    options = {"ddconfig": config.ddconfig("decoder"), "decoder_target": "VideoDecoder", "parts": ("decoder",)}
    chunked: Any = AutoencoderKL(4, **options, use_post_quant_conv=False, max_batch_size=4).eval()
    chunked.load_state_dict(whole.state_dict())
    z = torch.randn(8, 4, 2, 2)
    with torch.inference_mode():
        torch.testing.assert_close(chunked.decode(z, timesteps=2), whole.decode(z, timesteps=2), **CLOSE)
        torch.testing.assert_close(chunked.decode(z[:4]), whole.decode(z[:4]), **CLOSE)
        for timesteps in (8, None):
            with pytest.raises(ValueError, match="max_batch_size: expected at least the 8 frames of one group, got 4"):
                chunked.decode(z, timesteps=timesteps)
