"""What networks are called with and built from, where it is wrong: one line, the same with tiles and slices, and advice
that is right for images, for latents and for number formats."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_vae import InputError, load_vae
from exact_vae.tests.families.table import ROWS, random_model
from exact_vae.vae_model import AutoencoderKL, AutoencoderTiny, DecoderTiny, EncoderTiny, VideoDecoder, make_attn
from exact_vae.vae_model.families.tiny.coder import ACTIVATIONS, UPSAMPLE_MODES
from torch import Tensor, nn
from torch.nn.utils import parametrize

SMALL: dict[str, Any] = {
    "ch": 8, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (), "in_channels": 3,
    "resolution": 32, "z_channels": 4, "num_groups": 4,
}  # fmt: skip
WRONG: dict[str, tuple[Callable[[int], Any], str]] = {
    "list": (lambda _: [1], "expected a tensor"),
    "nothing": (lambda _: None, "got nothing: pass one"),
    "no batch": (lambda c: torch.zeros(c, 8, 8), r"add a batch axis, by x\[None\]"),
    "channels": (lambda c: torch.zeros(1, c + 1, 8, 8), "use the network that belongs to it"),
    "no rows": (lambda c: torch.zeros(1, c, 0, 8), "expected sides of at least 1, got 8 x 0"),
    "no columns": (lambda c: torch.zeros(1, c, 8, 0), "expected sides of at least 1, got 0 x 8"),
    "whole": (lambda c: torch.zeros(1, c, 8, 8, dtype=torch.int64), "expected floats"),
    "half": (lambda c: torch.zeros(1, c, 8, 8).half(), r"expected torch.float32 as its weights, got torch.float16"),
    "double": (lambda c: torch.zeros(1, c, 8, 8).double(), r"pass x.to\(torch.float32\), or convert the model"),
    "float8": (lambda c: torch.zeros(1, c, 8, 8).to(torch.float8_e4m3fn), "got torch.float8_e4m3fn"),
}


def tiny(**options: Any) -> AutoencoderTiny:
    torch.manual_seed(0)
    halves = {f"{half}_block_out_channels": (4, 4) for half in ("encoder", "decoder")}
    return AutoencoderTiny(num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1), **halves, **options).eval()


@pytest.mark.parametrize("name", list(WRONG))
@pytest.mark.parametrize("half", ["encode", "decode"])
def test_tiles_and_slices_say_what_the_plain_model_says(name: str, half: str) -> None:
    make, text = WRONG[name]
    said: set[str] = set()
    for tiling in (False, True):
        for slicing in (False, True):
            model = tiny()
            model.use_tiling, model.use_slicing = tiling, slicing
            with pytest.raises(InputError, match=text) as caught:
                getattr(model, half)(make(3 if half == "encode" else 4))
            said.add(str(caught.value))
    assert len(said) == 1
    assert "\n" not in said.pop()


def test_tiles_and_slices_still_run() -> None:
    model, x = tiny(), torch.rand(2, 3, 16, 24)
    plain = model.encode(x).latents
    model.enable_slicing()
    torch.testing.assert_close(model.encode(x).latents, plain)
    model.enable_tiling()
    torch.testing.assert_close(model.encode(x).latents, plain)  # all of it is one tile
    model.encoder = nn.Identity()  # somebody's own half is asked nothing
    model.disable_tiling()
    assert model.encode(x).latents.shape == x.shape


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int64, torch.bool])
@pytest.mark.parametrize("name", ["SD1, SD2, SDXL", "TAESD, TAESDXL", "Flux.2", *(n for n in ROWS if "Wan" in n)])
def test_whole_numbers_are_no_latents(name: str, dtype: torch.dtype) -> None:
    model: Any = random_model(ROWS[name])
    z = torch.zeros(1, ROWS[name].channels, 4, 4, dtype=dtype)
    with pytest.raises(InputError, match=f"got {dtype}: pass what encode returned; whole numbers are no latents$"):
        model.decode(z)
    x = torch.zeros(1, 3, 32, 32, dtype=dtype)
    with pytest.raises(InputError) as caught:
        model.encode(x)
    assert "latents" not in str(caught.value)
    assert ("x / 127.5 - 1" in str(caught.value)) == (dtype == torch.uint8)


@pytest.mark.parametrize("name", [name for name in ROWS if "AE" not in name or "TAE" in name])
def test_another_dtype_than_the_weights(name: str) -> None:
    row = ROWS[name]
    model: Any = random_model(row)
    z = torch.zeros(1, row.channels, 4, 4, dtype=torch.float64)
    with pytest.raises(InputError, match=r"expected torch.float32 as its weights, got torch.float64: pass x.to"):
        model.decode(z)
    assert torch.isfinite(torch.as_tensor(_first(model.double().decode(z)))).all()


def _first(result: Any) -> Tensor:
    return result if isinstance(result, Tensor) else result[0]


def test_those_who_cast_are_left_alone() -> None:
    model, z = AutoencoderKL(4, ddconfig=SMALL).eval(), torch.zeros(1, 4, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.decode(z.to(torch.bfloat16)).shape == (1, 3, 8, 8)
    first = model.post_quant_conv
    first.register_forward_pre_hook(lambda _, args: (args[0].float(),))
    assert model.decode(z.double()).dtype == torch.float32

    class Narrow(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight.double()

    other = AutoencoderKL(4, ddconfig=SMALL).double().eval()
    other.post_quant_conv.float()
    for name in ("weight", "bias"):
        parametrize.register_parametrization(other.post_quant_conv, name, Narrow(), unsafe=True)
    assert other.decode(z.double()).dtype == torch.float64


@pytest.mark.parametrize("value", ["foo", None, 3, "", ["relu"], "Nearest", "trilinear"])
def test_choices_are_checked_when_it_is_built(value: Any) -> None:
    decoder = {"act_fn": "relu", "upsample_fn": "nearest"}
    tables = {"act_fn": ACTIVATIONS, "upsample_fn": UPSAMPLE_MODES}
    for name, table in tables.items():
        text = f"^{name}: expected one of {', '.join(table)}, got "
        with pytest.raises(InputError, match=text):
            AutoencoderTiny(**{name: value})
        with pytest.raises(InputError, match=text):
            DecoderTiny(4, 3, (1,), (4,), 2, **decoder | {name: value})
    with pytest.raises(InputError, match=r"^act_fn: expected one of relu"):
        EncoderTiny(3, 4, (1,), (4,), value)
    with pytest.raises(InputError, match=r"^attn_type: expected one of vanilla"):
        make_attn(8, attn_type=value)
    for name in ("time_mode", "merge_strategy", "attn_type"):
        with pytest.raises(InputError, match=f"^{name}: expected one of "):
            VideoDecoder(**SMALL, **{name: value})
    if not isinstance(value, int):
        with pytest.raises(InputError, match="alpha: expected a finite number, got"):
            VideoDecoder(**SMALL, alpha=value)


@pytest.mark.parametrize("mode", UPSAMPLE_MODES)
def test_every_choice_runs(mode: str) -> None:
    assert tiny(upsample_fn=mode, act_fn="swish").decode(torch.zeros(1, 4, 4, 4)).sample.shape == (1, 3, 8, 8)


@pytest.mark.parametrize("name", ["SD1, SD2, SDXL", "TAESD, TAESDXL"])
@pytest.mark.parametrize("method", ["exact", "untiled", "blend"])
def test_float64_gives_float64(name: str, method: str) -> None:
    model: Any = random_model(ROWS[name])
    vae = load_vae(model, dtype="double", device="cpu", latent_format="raw" if "TAE" in name else None)
    z = torch.randn(1, vae.latent_channels, 6, 5, generator=torch.Generator().manual_seed(1))
    x = torch.rand(1, 48, 40, 3, generator=torch.Generator().manual_seed(2))
    image, latent = vae.decode(z, method=method), vae.encode(x, method=method)
    assert image.dtype == latent.dtype == vae.vae_output_dtype() == torch.float64
    assert vae.last_report is not None
    with torch.inference_mode():
        right = _first(model.double().decode(z.double())).add(1).div(2).clamp(0, 1).movedim(1, -1)
    if method != "blend":
        torch.testing.assert_close(image, right, rtol=0, atol=1e-12)
        torch.testing.assert_close(latent, vae.encode(x.double(), method="untiled"), rtol=0, atol=1e-12)
    assert load_vae(random_model(ROWS[name]), dtype="bf16", device="cpu").decode(z).dtype == torch.float32
