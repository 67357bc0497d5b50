"""TAEF2 with its published weights: the pair of files loads, and photographs come back from it.

The weights and photographs lie beside the checkout; without them these tests are skipped.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.vae_model.checkpoint.load import LoadedModel, load_model
from exact_vae.vae_model.evaluation.metrics import psnr
from exact_vae.vae_model.files.images import middle, read_image, read_photo
from torch import Tensor
from torch.nn import functional

PHOTOS = 2
SIDE = 384
LEAST_DB = 28.0


@pytest.fixture(scope="module")
def files(shared: Path) -> list[Path]:
    paths = [shared / "weights" / f"taef2_{half}.pth" for half in ("encoder", "decoder")]
    if not all(path.is_file() for path in paths):
        pytest.skip("the TAEF2 weights are absent")
    return paths


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def loaded(files: list[Path]) -> LoadedModel:
    return load_model(files)


@pytest.fixture(scope="module")
def model(files: list[Path]) -> Any:
    return load_model(files, dtype=torch.float32).model


@pytest.fixture(scope="module")
def crops(shared: Path) -> list[Tensor]:
    """The first photographs only: reading all of them would take most of this file's time."""
    return [middle(read_photo(path), SIDE)[None] for path in sorted((shared / "photos" / "val").iterdir())[:PHOTOS]]


def test_the_pair_is_recognised(loaded: LoadedModel) -> None:
    config: Any = loaded.config
    assert loaded.family == "tiny"
    assert loaded.layouts == ("taesd-encoder", "taesd-decoder")
    assert (config.latent_channels, config.factor, config.midblock_gn) == (32, 8, True)
    assert config.encoder_block_out_channels == config.decoder_block_out_channels == (64, 64, 64, 64)
    assert (config.num_encoder_blocks, config.num_decoder_blocks) == ((1, 3, 3, 3), (3, 3, 3, 1))


def test_the_group_norm_branch_is_there(loaded: LoadedModel) -> None:
    pools = {key.split(".pool")[0] for key in loaded.model.state_dict() if ".pool." in key}
    assert pools == {f"encoder.layers.{n}" for n in (11, 12, 13)} | {f"decoder.layers.{n}" for n in (2, 3, 4)}
    assert loaded.model.state_dict()["decoder.layers.2.pool.0.weight"].shape == (256, 64, 1, 1)


def test_the_tensors_are_the_files(loaded: LoadedModel, files: list[Path]) -> None:
    encoder, decoder = (torch.load(path, weights_only=True) for path in files)
    state = loaded.model.state_dict()
    assert len(state) == len(encoder) + len(decoder)
    for number, tensor in encoder.items():
        assert torch.equal(state[f"encoder.layers.{number}"], tensor)
    for key, tensor in decoder.items():
        number, rest = key.split(".", 1)  # the bare file counts the clamp of the latents as layer 0
        assert torch.equal(state[f"decoder.layers.{int(number) - 1}.{rest}"], tensor)


def test_photographs_come_back(model: Any, crops: list[Tensor]) -> None:
    with torch.inference_mode():
        found = [psnr(x, model.decode(model.encode(x).latents).sample) for x in crops]
    assert sum(found) / len(found) >= LEAST_DB


def test_photographs_come_back_through_load_vae(files: list[Path], model: Any, crops: list[Tensor]) -> None:
    vae = load_vae(files, device="cpu", dtype="float32")
    x = crops[0][:, :, :256, :256]
    latents = vae.encode((x.movedim(1, -1) + 1) / 2)  # (1, H, W, 3) in 0..1
    assert latents.shape == (1, 32, 32, 32)
    images = vae.decode(latents)
    assert images.shape == (1, 256, 256, 3)
    assert psnr(x, images.movedim(-1, 1) * 2 - 1) >= LEAST_DB
    with torch.inference_mode():
        expected = ((model.decode(model.encode(x).latents).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    # The detour through 0..1 rounds each pixel once, which forty layers of float32 carry on.
    torch.testing.assert_close(images, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_one_file_is_half_a_model(files: list[Path], model: Any, half: str) -> None:
    part: Any = load_model(files[half == "decoder"], dtype=torch.float32).model
    generator = torch.Generator().manual_seed(0)
    image, z = torch.rand(1, 3, 64, 48, generator=generator), torch.randn(1, 32, 8, 6, generator=generator)
    with torch.inference_mode():
        if half == "encoder":
            assert torch.equal(part.encode(image).latents, model.encode(image).latents)
            with pytest.raises(RuntimeError, match="expected a model with decoder"):
                part.decode(z)
        else:
            assert torch.equal(part.decode(z).sample, model.decode(z).sample)
            with pytest.raises(RuntimeError, match="expected a model with encoder"):
                part.encode(image)


@pytest.mark.slow
def test_a_whole_photograph_is_exact_in_strips_and_damaged_by_tiles(files: list[Path], shared: Path) -> None:
    """Of half its size, as are the tiles that people use."""
    vae = load_vae(files, device="cpu", dtype="float32")
    pixels, _ = read_image(sorted((shared / "photos" / "val").glob("*.jpg"))[0])
    assert max(pixels.shape[1:3]) == 1024
    pixels = functional.avg_pool2d(pixels.movedim(-1, 1), 2).movedim(1, -1)
    latent = vae.encode(pixels, "untiled")
    untiled = vae.decode(latent, "untiled")
    # Untiled is up to 7e-6 off by itself, depending on the processor; so 1e-5 is held against the truth in float64, and
    # against untiled what float32 promises: 2e-5 of the range, which is 1.
    truth = load_model(files, dtype=torch.float64).model
    with torch.inference_mode():
        true = ((truth.decode(latent.double()).sample + 1) / 2).clamp(0, 1).movedim(1, -1)
    for memory in (None, "16MiB"):
        image = vae.decode(latent, memory=memory)
        torch.testing.assert_close(image.double(), true, rtol=0, atol=1e-5)
        torch.testing.assert_close(image, untiled, rtol=0, atol=2e-5)
        assert vae.last_plan is not None
    del truth, true
    spread = float(latent.max() - latent.min())
    torch.testing.assert_close(vae.encode(pixels), latent, rtol=0, atol=1e-5 * spread)
    blended = vae.decode(latent, "blend", tile_size=256, overlap=32)
    decibels = -10 * torch.log10((blended - untiled).double().square().mean())
    assert 20 < decibels < 40  # what tiles cost: their own statistics
