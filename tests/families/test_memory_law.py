"""The estimate of an untiled run against what a meter of live tensors sees, for many configurations and sizes."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.model_management.host import LocalHost
from exact_vae.tests.families.table import SMALL, dc_ae
from exact_vae.vae_model.checkpoint.load import LoadedModel
from exact_vae.vae_model.families.dc_ae.config import DCConfig
from exact_vae.vae_model.families.family import Config
from exact_vae.vae_model.families.hunyuan_image.config import HunyuanImageConfig
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.qwen_image_21.config import QwenImage21Config
from exact_vae.vae_model.families.table import FAMILIES
from exact_vae.vae_model.families.tiny.config import TinyConfig
from exact_vae.vae_model.families.wan.config import WanConfig
from exact_vae.vae_model.families.wan22 import Wan22Config
from exact_vae.vae_model.vae import VAE

CPU = torch.device("cpu")
# Below 0.85 a run that was promised to fit could fail; above 1.35 a run that fits would be refused. Not counted are the
# finished image (3 numbers per pixel) and small planes; counted too much are copies that attention may not need.
LOWEST, HIGHEST = 0.85, 1.35


def kl(
    *widths: int, blocks: int = 1, ch: int | None = None, attn: tuple[int, ...] = (), kind: str = "vanilla"
) -> Config:
    levels = LevelsConfig(ch or widths[0], widths, blocks, attn, kind)
    return KLConfig(4, 4, levels, levels, num_groups=8)


def tiny(*widths: int, blocks: tuple[int, ...], gn: bool = False) -> Config:
    return TinyConfig(
        latent_channels=8,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths[::-1],
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks[::-1],
        midblock_gn=gn,
    )


def wan(*widths: int, blocks: int = 2) -> WanConfig:
    levels = LevelsConfig(widths[0], widths, blocks)
    return WanConfig(4, levels, levels, (True,) * (len(widths) - 1))


def qwen_image_21(*widths: int) -> Config:
    levels = LevelsConfig(widths[0], widths, 2)
    return QwenImage21Config(4, levels, levels, (False, True, True)[: len(widths) - 1])


def wan22(*widths: int) -> Config:
    levels = LevelsConfig(widths[0], widths, 2)
    return Wan22Config(4, levels, levels, (False, True, True)[: len(widths) - 1])


def hunyuan_image(*widths: int) -> Config:
    levels = LevelsConfig(widths[0], widths, 2)
    return HunyuanImageConfig(16, levels, levels)


CONFIGS: dict[str, Config] = {
    "two levels": kl(32, 64),
    "three levels": kl(16, 64, 128),
    "four levels": kl(32, 64, 64, 64),
    "equal widths": kl(32, 32, 32),
    "two blocks": kl(32, 64, 64, blocks=2),
    "three blocks": kl(16, 16, 32, 64, blocks=3),
    "half of SD": kl(64, 128, 256, 256, blocks=2),
    "wide start": kl(32, 32, 64, ch=64),
    "attention below": kl(32, 64, 64, attn=(2,)),
    "attention at full size": kl(32, 64, attn=(0,)),
    "linear attention": kl(32, 64, attn=(0, 1), kind="linear"),
    "no attention": kl(32, 64, kind="none"),
    "bundled": SMALL,
    "TAESD": TinyConfig(),
    "tiny, two stages": tiny(32, 32, blocks=(1, 1)),
    "tiny, widening": tiny(32, 64, 96, 128, blocks=(1, 3, 3, 3), gn=True),
    "tiny, wide norm branch": tiny(32, 128, blocks=(1, 2), gn=True),
    "Wan": wan(32, 64, 128, 128),
    "Wan, one block": wan(32, 32, blocks=1),
    "Wan, images twice as large": replace(wan(32, 64, 64), out_channels=12),
    "Wan 2.2": wan22(32, 64, 64),
    "Wan 2.2, equal widths": wan22(32, 32),
    "Qwen-Image 2.1": qwen_image_21(32, 64, 64),
    "Qwen-Image 2.1, equal widths": qwen_image_21(32, 32, 32),
    "HunyuanImage": hunyuan_image(32, 64, 128),
    "HunyuanImage, equal widths": hunyuan_image(32, 32),
    "Sana": dc_ae(16, 32, 64, 64, 64, pixels=False, head_dim=32),
    "Sana, wide attention": dc_ae(16, 16, 64, pixels=False, head_dim=16),
    "DC-AE": dc_ae(16, 32, 32, 64, 64, whole=False),
    "DC-AE, attention next to the image": dc_ae(16, 16, 32, 32, whole=False),
    "DC-AE, packed at full size": dc_ae(16, 32, 64, 64),
    "tiny, nothing at full size": tiny(64, 64, 64, blocks=(0, 2, 2)),
}


NAMES: dict[type, str] = {
    KLConfig: "kl",
    TinyConfig: "tiny",
    WanConfig: "wan",
    Wan22Config: "wan22",
    QwenImage21Config: "qwen_image_21",
    HunyuanImageConfig: "hunyuan_image",
    DCConfig: "dc_ae",
}


def name_of(config: Config) -> str:
    return NAMES[type(config)]


def elements(config: Config, direction: str) -> float:
    return FAMILIES[name_of(config)].untiled_elements(config, direction)


def make_vae(config: Config, dtype: torch.dtype = torch.float32) -> VAE:
    family = name_of(config)
    model = FAMILIES[family].build(config).eval().to(dtype).requires_grad_(False)
    loaded = LoadedModel(model, config, family, ("ldm",), "", {}, dtype)
    return VAE(loaded, LocalHost(), device=CPU, dtype=dtype, output_device=CPU)


def measure(run: Callable[[], object]) -> int:
    with LiveTensorMeter() as meter:
        run()
    return meter.peak_bytes


def assert_close_enough(predicted: int, measured: int) -> None:
    assert LOWEST <= predicted / measured <= HIGHEST, f"predicted {predicted}, measured {measured}"


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [(16, 16), (24, 40)])
def test_float32(name: str, size: tuple[int, int]) -> None:
    config = CONFIGS[name]
    vae, f = make_vae(config), config.factor
    z = torch.randn(1, config.latent_channels, size[0] // f, size[1] // f)
    x = torch.rand(1, *size, 3)
    assert_close_enough(vae.memory_used_decode(z.shape, z.dtype), measure(lambda: vae.decode(z, "untiled")))
    assert_close_enough(vae.memory_used_encode((1, 3, *size), x.dtype), measure(lambda: vae.encode(x, "untiled")))


@pytest.mark.parametrize("name", ["four levels", "half of SD", "TAESD"])
def test_bfloat16(name: str) -> None:
    config = CONFIGS[name]
    vae, f = make_vae(config, torch.bfloat16), config.factor
    z, x = torch.randn(1, config.latent_channels, 16 // f, 24 // f), torch.rand(1, 16, 24, 3)
    assert_close_enough(vae.memory_used_decode(z.shape, torch.bfloat16), measure(lambda: vae.decode(z, "untiled")))
    assert_close_enough(
        vae.memory_used_encode((1, 3, 16, 24), torch.bfloat16), measure(lambda: vae.encode(x, "untiled"))
    )


def test_it_counts_one_item_and_grows_with_the_pixels_and_the_width_of_numbers() -> None:
    vae = make_vae(CONFIGS["four levels"])
    one = vae.memory_used_decode((1, 4, 8, 8), torch.float32)
    assert vae.memory_used_decode((5, 4, 8, 8), torch.float32) == one
    assert vae.memory_used_decode((1, 4, 16, 24), torch.float32) == 6 * one
    assert vae.memory_used_decode((1, 4, 8, 8), torch.bfloat16) == one // 2
    one = vae.memory_used_encode((1, 3, 64, 64), torch.float32)
    assert vae.memory_used_encode((5, 3, 64, 64), torch.float32) == one
    assert vae.memory_used_encode((1, 3, 128, 192), torch.float32) == 6 * one
    assert vae.memory_used_encode((1, 3, 64, 64), torch.float16) == one // 2


def test_the_field_s_own_sizes() -> None:
    """By hand. SD decodes worst in the first block of full size: two planes of 256 channels and one of 128."""
    sd = LevelsConfig(128, (128, 256, 512, 512), 2)
    config = KLConfig(4, 4, sd, sd)
    assert elements(config, "decode") == 2 * 256 + 128
    assert elements(config, "encode") == 3 + 3 * 128
    assert elements(TinyConfig(), "decode") == 3 * 64


def test_an_absent_half_takes_nothing() -> None:
    levels = LevelsConfig(32, (32, 64), 1)
    assert elements(KLConfig(4, 4, levels, None, num_groups=8), "decode") == 0
    assert elements(KLConfig(4, 4, None, levels, num_groups=8), "encode") == 0
    assert elements(TinyConfig(encoder_block_out_channels=None), "encode") == 0
