"""Every layout, there and back: the tensors, the configuration and the bytes of the file stay the same."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae.vae_model.checkpoint.load import LoadedModel, load_model
from exact_vae.vae_model.checkpoint.save import save, to_layout
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.dc_ae.config import DCConfig, DCLevels, Stage
from exact_vae.vae_model.families.family import Config
from exact_vae.vae_model.families.hunyuan_image.config import HunyuanImageConfig
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.qwen_image_21.config import QwenImage21Config
from exact_vae.vae_model.families.table import FAMILIES, all_layouts
from exact_vae.vae_model.families.taehv.config import TAEHVConfig
from exact_vae.vae_model.families.tiny.config import TinyConfig
from exact_vae.vae_model.families.video.model import VideoConfig
from exact_vae.vae_model.families.wan.config import WanConfig
from exact_vae.vae_model.families.wan22 import Wan22Config
from safetensors.torch import load_file
from torch import Tensor, nn


def levels(*widths: int, blocks: int = 1, attn: tuple[int, ...] = (), kind: str = "vanilla") -> LevelsConfig:
    return LevelsConfig(ch=widths[0], widths=widths, num_res_blocks=blocks, attn_levels=attn, attn_type=kind)


def kl(encoder: LevelsConfig | None, decoder: LevelsConfig | None = None, **options: Any) -> KLConfig:
    return KLConfig(
        **{"z_channels": 4, "embed_dim": 4, "encoder": encoder, "decoder": decoder, "num_groups": 8} | options
    )


BARE = {"quant_conv": False, "post_quant_conv": False}
KL_CONFIGS = {
    "2 levels": kl(levels(8, 16), levels(8, 16)),
    "3 levels": kl(levels(8, 16, 32, blocks=2), levels(8, 16, 32, blocks=2)),
    "4 levels": kl(levels(8, 16, 16, 24), levels(8, 16, 16, 24), **BARE),
    "5 levels": kl(levels(8, 8, 16, 16, 24), levels(8, 8, 16, 16, 24), embed_dim=3),
    "6 levels": kl(levels(8, 8, 8, 8, 16, 16), levels(8, 8, 8, 8, 16, 16)),
    "1 level": kl(levels(16), levels(16)),
    "attention in levels": kl(levels(8, 16, 16, attn=(1, 2)), levels(8, 16, 16, attn=(0,)), num_groups=4),
    "attention in encoder levels": kl(levels(8, 16, 16, blocks=2, attn=(2,)), levels(8, 16, 16)),
    "no attention": kl(levels(8, 16, kind="none"), levels(8, 16, kind="none")),
    "narrow decoder": kl(levels(32, 64, 128, 128), levels(24, 48, 96, 96), z_channels=32, embed_dim=32),
    "narrow encoder": kl(levels(8, 16, blocks=1), levels(32, 64, blocks=3)),
    "single z": kl(levels(8, 16), levels(8, 16), double_z=False),
    "one quant convolution": kl(levels(8, 16), levels(8, 16), post_quant_conv=False),
    "other channels": kl(levels(8, 16), levels(8, 16), in_channels=4, out_ch=1),
    "encoder only": kl(levels(8, 16, 16), None, post_quant_conv=False, embed_dim=3),
    "decoder only": kl(None, levels(8, 16, 16, attn=(2,)), quant_conv=False, embed_dim=3),
    "bare encoder": kl(levels(8, 16), None, **BARE),
    "bare decoder": kl(None, levels(8, 16), **BARE),
}
TINY_CONFIGS = {
    "TAESD": TinyConfig(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4),
    "TAEF2": TinyConfig(32, 3, 3, (8,) * 4, (8,) * 4, midblock_gn=True),
    "unequal widths": TinyConfig(5, 4, 1, (4, 8, 6), (6, 8, 4), (1, 2, 1), (2, 0, 3)),
    "scaled": TinyConfig(16, 3, 3, (8, 8), (8, 8), (1, 1), (1, 1), scaling_factor=0.3611, shift_factor=0.1159),
    "encoder only": TinyConfig(4, 3, 3, (8,) * 4, None),
    "decoder only": TinyConfig(4, 3, 3, None, (8,) * 4),
}
VIDEO_CONFIGS = {
    name: VideoConfig(4, 4, *halves, post_quant_conv=False, num_groups=8, video_kernel_size=kernel)
    for name, halves, kernel in (
        ("4 levels", [levels(8, 16, 16, 24, blocks=2)] * 2, (3, 1, 1)),
        ("other decoder", [levels(8, 16), levels(16, 8, attn=(0,))], (5, 3, 1)),
    )
}
HALF_LAYOUTS = ("taesd-encoder", "taesd-decoder")
WIDE = {"z_channels": 32, "embed_dim": 32}
FLUX2_CONFIGS = {
    "Flux.2": kl(levels(8, 16, 16, 24), levels(8, 16, 16, 24), **WIDE, patch=2),
    "narrow decoder": kl(levels(16, 32, 64, 64), levels(8, 16, 32, 32), **WIDE, patch=2, batch_norm_eps=0.03),
    "decoder only": kl(None, levels(8, 16), **WIDE, patch=2, quant_conv=False),
    "without quant convolutions": kl(levels(8, 16), levels(8, 16), **WIDE, patch=2, **BARE),
}
VQ_CONFIGS = {
    "VQ-f4": kl(levels(8, 16, 16), levels(8, 16, 16), double_z=False, codebook=32),
    "VQ-f8": kl(levels(8, 16, 16, 24, attn=(3,)), levels(8, 16, 16, 24, attn=(3,)), double_z=False, codebook=9),
    "other width": kl(levels(8, 16), levels(8, 16), z_channels=16, embed_dim=6, double_z=False, codebook=5),
}
WAN_CONFIGS = {
    "Wan 2.1": WanConfig(16, *[levels(8, 16, 32, 32, blocks=2)] * 2, over_time=(False, True, True)),
    "decoder only, RGBA": WanConfig(4, None, levels(8, 16), over_time=(True,), out_channels=4),
    "twice as large": WanConfig(4, *[levels(8, 16)] * 2, over_time=(True,), out_channels=12),
    "decoder only, twice as large": WanConfig(4, None, levels(8, 16), over_time=(True,), out_channels=12),
}
QWEN_IMAGE_21_CONFIGS = {
    "four levels": QwenImage21Config(4, levels(8, 16, 32, 32, blocks=2), levels(12, 12, 12, 12, blocks=2), (True,) * 3),
    "decoder only, RGB": QwenImage21Config(4, None, levels(8, 16, blocks=2), (False,), out_channels=3),
    "encoder only": QwenImage21Config(4, levels(8, 8, blocks=2), None, (False,)),
}
WAN22_CONFIGS = {
    "four levels": Wan22Config(
        4, levels(8, 16, 32, 32, blocks=2), levels(12, 12, 12, 12, blocks=2), (True, False, True)
    ),
    "decoder only": Wan22Config(4, None, levels(8, 16, blocks=2), (False,)),
    "encoder only": Wan22Config(4, levels(8, 8, blocks=2), None, (True,)),
}
HUNYUAN_IMAGE_CONFIGS = {
    "three levels": HunyuanImageConfig(16, *[levels(32, 32, 64, blocks=2)] * 2),
    "decoder only": HunyuanImageConfig(4, None, levels(32, 64, blocks=2), out_channels=4),
    "encoder only": HunyuanImageConfig(16, levels(32, 64, blocks=2), None),
}
ATTENTION = Stage(32, 2, attends=True, scales=(5,))
DC_AE_CONFIGS = {
    "strided": DCConfig(16, *[DCLevels((Stage(8, 2), Stage(16, 1), ATTENTION), pixels=False)] * 2, head_dim=8),
    "decoder only, nothing at full size": DCConfig(
        4,
        None,
        DCLevels(
            (
                Stage(4, 0, norm="batch_norm", activation="relu"),
                Stage(8, 2, norm="batch_norm", activation="relu"),
                Stage(32, 1, attends=True),
            )
        ),
        out_channels=4,
    ),
    "encoder only": DCConfig(8, DCLevels((Stage(8, 1), Stage(8, 0))), None),
}
TAEHV_CONFIGS = {
    "squares of four": TAEHVConfig(12, 8, (16, 8, 8, 4), (True, True, True), (True, True, True), patch=4),
    "decoder only, no growth": TAEHVConfig(4, None, (8, 8, 8, 8), (False,) * 3, (False,) * 3),
    "encoder only": TAEHVConfig(16, 16, None, (False, True, False), (False, True, False), patch=2),
}
CONFIGS = {
    "kl": KL_CONFIGS,
    "flux2": FLUX2_CONFIGS,
    "vq": VQ_CONFIGS,
    "tiny": TINY_CONFIGS,
    "video": VIDEO_CONFIGS,
    "wan": WAN_CONFIGS,
    "wan22": WAN22_CONFIGS,
    "qwen_image_21": QWEN_IMAGE_21_CONFIGS,
    "hunyuan_image": HUNYUAN_IMAGE_CONFIGS,
    "dc_ae": DC_AE_CONFIGS,
    "taehv": TAEHV_CONFIGS,
}
ROUND_TRIPS = [
    pytest.param(row.name, row.family, config, id=f"{row.name}: {row.family}: {name}")
    for row in all_layouts()
    for name, config in CONFIGS[row.family].items()
    if row.name not in HALF_LAYOUTS
]


@pytest.fixture(autouse=True)
def seed() -> Iterator[None]:
    """Fixed numbers, and one thread: these tensors are too small to share out."""
    torch.manual_seed(90)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def family_of(config: Config) -> str:
    return next(family for family, configs in CONFIGS.items() if config in configs.values())


def random_model(config: Config, family: str | None = None) -> nn.Module:
    """A model without two equal tensors, so that none can be taken for another."""
    model = FAMILIES[family or family_of(config)].build(config)
    for tensor in model.state_dict().values():
        nn.init.normal_(tensor) if tensor.is_floating_point() else tensor.fill_(77)
    return model.eval()


def assert_same_model(loaded: LoadedModel, model: nn.Module, config: Config | None) -> None:
    """The same configuration (None: not compared), and the same tensors, bit for bit."""
    assert config is None or loaded.config == config
    expected, actual = model.state_dict(), loaded.model.state_dict()
    assert actual.keys() == expected.keys()
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype
        assert torch.equal(actual[key], tensor), key


def hints(config: Config) -> dict[str, Any]:
    """What no shape tells, as a config.json would."""
    if isinstance(config, KLConfig):
        return {"norm_num_groups": config.num_groups, "batch_norm_eps": config.batch_norm_eps}
    if not isinstance(config, TinyConfig):
        return {}
    return {"vae_scale": config.scaling_factor, "vae_shift": config.shift_factor}


def expected_layout(layout: str, config: Config) -> str:
    has_old_names = isinstance(config, KLConfig) and "none" not in {
        half.attn_type for half in (config.encoder, config.decoder) if half
    }
    # Old and new diffusers files differ in their attention's names alone.
    return "diffusers" if layout == "diffusers-old" and not has_old_names else layout


@pytest.mark.parametrize(("layout", "family", "config"), ROUND_TRIPS)
def test_state_dict_round_trip(layout: str, family: str, config: Config) -> None:
    model = random_model(config)
    loaded = load_model(to_layout(model, layout), config=hints(config))
    assert (loaded.family, loaded.layouts) == (family, (expected_layout(layout, config),))
    assert_same_model(loaded, model, config)


@pytest.mark.parametrize(("layout", "family", "config"), ROUND_TRIPS)
def test_file_round_trip_is_byte_identical(layout: str, family: str, config: Config, tmp_path: Path) -> None:
    model = random_model(config)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save(model, first, layout=layout)
    loaded = load_model(first)
    assert_same_model(loaded, model, config)
    save(loaded.model, second, layout=layout)
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("name", KL_CONFIGS)
@pytest.mark.parametrize("middle", ["diffusers", "diffusers-old"])
def test_ldm_by_way_of_diffusers_is_byte_identical(middle: str, name: str, tmp_path: Path) -> None:
    before, between, after = (tmp_path / f"{n}.safetensors" for n in ("before", "between", "after"))
    save(random_model(KL_CONFIGS[name]), before, layout="ldm")
    save(load_model(before).model, between, layout=middle)
    save(load_model(between).model, after)  # ldm is what KL models are saved as unless told
    assert before.read_bytes() == after.read_bytes()
    assert name == "1 level" or before.read_bytes() != between.read_bytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes_are_kept(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_model(KL_CONFIGS["3 levels"])
    save(model, tmp_path / "vae.safetensors", dtype=dtype)
    loaded = load_model(tmp_path / "vae.safetensors")
    assert loaded.stored_dtype == dtype
    assert_same_model(loaded, model.to(dtype), KL_CONFIGS["3 levels"])


@pytest.mark.parametrize("name", ["TAESD", "TAEF2", "unequal widths"])
def test_taesd_pair_of_bare_files(name: str, tmp_path: Path) -> None:
    config = TINY_CONFIGS[name]
    model = random_model(config)
    halves = to_layout(model, "taesd-encoder"), to_layout(model, "taesd-decoder")
    assert "0.weight" in halves[0]
    assert "1.weight" in halves[1]
    assert "0.weight" not in halves[1]
    assert len(halves[0]) + len(halves[1]) == len(model.state_dict())
    for pair in (halves, halves[::-1]):
        loaded = load_model(pair)
        assert set(loaded.layouts) == set(HALF_LAYOUTS)
        assert_same_model(loaded, model, config)
    folder = tmp_path / "pair"  # its name tells nothing, as that of the test's folder would
    folder.mkdir()
    paths = [folder / "encoder.pth", folder / "decoder.pth"]
    for half, path in zip(halves, paths, strict=True):
        torch.save(half, path)
    assert_same_model(load_model(paths), model, config)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_taesd_pair_round_trip(half: str, tmp_path: Path) -> None:
    config = TINY_CONFIGS[f"{half} only"]
    model = random_model(config)
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    save(model, first, layout=f"taesd-{half}")
    loaded = load_model(first)
    assert loaded.layouts == (f"taesd-{half}",)
    assert_same_model(loaded, model, config)
    save(loaded.model, second, layout=f"taesd-{half}")
    assert first.read_bytes() == second.read_bytes()


def test_comfyuis_scale_and_shift_beside_a_tiny_model() -> None:
    config = TINY_CONFIGS["scaled"]
    model = random_model(config)
    scalars = {"vae_scale": torch.tensor(0.3611), "vae_shift": torch.tensor(0.1159)}
    loaded = load_model(to_layout(model, "taesd-comfyui") | scalars)
    assert_same_model(loaded, model, None)
    stored = (float(scalars["vae_scale"]), float(scalars["vae_shift"]))
    assert (loaded.config.scaling_factor, loaded.config.shift_factor) == stored


def test_attention_is_stored_in_the_layouts_shape() -> None:
    model = random_model(KL_CONFIGS["attention in levels"])

    def shapes(layout: str, *pieces: str) -> set[int]:
        named: dict[str, Tensor] = to_layout(model, layout)
        return {t.ndim for key, t in named.items() if key.endswith("weight") and any(p in key for p in pieces)}

    assert shapes("ldm", ".q.", ".k.", ".v.", ".proj_out.") == {4}
    assert shapes("diffusers", ".to_q.", ".to_k.", ".to_v.", ".to_out.0.") == {2}
    assert shapes("diffusers-old", ".query.", ".key.", ".value.", ".proj_attn.") == {2}


def test_old_diffusers_attention_may_be_stored_as_convolutions() -> None:
    config = KL_CONFIGS["3 levels"]
    model = random_model(config)
    stored = {
        key: tensor[..., None, None] if tensor.ndim == 2 else tensor
        for key, tensor in to_layout(model, "diffusers-old").items()
    }
    assert_same_model(load_model(stored, config=hints(config)), model, config)


def test_a_diffusers_folder_brings_its_norm_groups(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=16,
    )
    theirs.save_pretrained(tmp_path)
    for source in (tmp_path, tmp_path / "diffusion_pytorch_model.safetensors"):
        loaded = load_model(source)
        assert loaded.layouts == ("diffusers",)
        assert loaded.config.num_groups == 16
        assert {m.num_groups for m in loaded.model.modules() if isinstance(m, nn.GroupNorm)} == {16}
    save(loaded.model, tmp_path / "again.safetensors", layout="diffusers")
    stored = load_file(tmp_path / "diffusion_pytorch_model.safetensors")
    again = load_file(tmp_path / "again.safetensors")
    assert stored.keys() == again.keys()
    assert all(torch.equal(stored[key], again[key]) for key in stored)


def test_layouts_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    linear = kl(levels(8, 16, kind="linear"), levels(8, 16, kind="linear"))
    model = random_model(linear, "kl")
    assert_same_model(load_model(to_layout(model, "ldm"), config=hints(linear)), model, linear)
    with pytest.raises(InputError, match=r"expected a place for .*to_qkv.weight, found none: save in the ldm layout"):
        to_layout(model, "diffusers")
    with pytest.raises(InputError, match="expected one of ldm, diffusers, diffusers-old, got 'taesd-encoder'"):
        save(model, tmp_path / "vae.safetensors", layout="taesd-encoder")
    with pytest.raises(
        InputError, match=r"got 'folder': add it, and exact-vae convert FILE --layout diffusers -o FOLDER"
    ):
        save(random_model(kl(levels(8, 16), levels(8, 16)), "kl"), tmp_path / "folder", layout="diffusers")
    with pytest.raises(InputError, match=r"ending in .safetensors, got 'vae.ckpt'"):
        save(model, tmp_path / "vae.ckpt")
    assert not list(tmp_path.iterdir())
