"""Families of small random coders with every special part, and how a program of one is run and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from exact_vae.tests.exact.programs import build_program
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.schedule import Schedule
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from torch import Tensor, nn

CPU = torch.device("cpu")
SCHEDULES: dict[str, dict[str, Any]] = {
    "resident": {},
    "recompute": {"store_hidden": False, "store_enlarged": False},
    "hidden only": {"store_enlarged": False},
    "enlarged only": {"store_hidden": False},
    "no blocks": {"store_blocks": False},
    "recompute all": {"store_hidden": False, "store_enlarged": False, "store_blocks": False},
    "spill": {"device_share": 0.0, "stream_attention": True},
    "half spill": {"device_share": 0.5, "stream_attention": True},
    "half spill, recompute": {"device_share": 0.5, "store_hidden": False, "store_enlarged": False},
}
MODES = ["zeros", "circular", "reflect", "replicate"]


class Family:
    """A module, what the program of it should equal, and the program itself."""

    def __init__(self, module: nn.Module, run: Callable[[Tensor], Tensor], program: Callable[[], Program]) -> None:
        self.module, self.run, self.build = module, run, program

    @property
    def program(self) -> Program:
        return self.build()

    def to(self, dtype: torch.dtype) -> Family:
        self.module.to(dtype)
        return self

    def pad(self, mode: str | Callable[[], str]) -> Family:
        """Change the borders of all 3x3 convolutions."""
        for layer in self.module.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
                layer.padding_mode = mode if isinstance(mode, str) else mode()
        return self


def randomised(module: nn.Module) -> Any:
    """Norms that are more than 1 and 0: an ignored weight or bias must show."""
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    return module.eval().double().requires_grad_(False)


def decoder(quant: bool = False, **options: Any) -> Family:
    torch.manual_seed(0)
    values: dict[str, Any] = {"ch": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "z_channels": 4, "num_groups": 4}
    net = randomised(Decoder(**{**values, "out_ch": 3, **options}))
    before = randomised(nn.Conv2d(4, 4, 1)) if quant else nn.Identity()
    both = nn.Sequential(before, net)
    return Family(both, both, lambda: build_program(net, before=before if quant else None))


def encoder(quant: bool = False, **options: Any) -> Family:
    torch.manual_seed(0)
    values: dict[str, Any] = {"ch": 8, "ch_mult": (1, 2, 2), "num_res_blocks": 1, "z_channels": 4, "num_groups": 4}
    net = randomised(Encoder(**{**values, "in_channels": 3, **options}))
    after = randomised(nn.Conv2d(8, 8, 1)) if quant else nn.Identity()
    both = nn.Sequential(net, after)
    return Family(both, both, lambda: build_program(net, after=after if quant else None))


def tiny(half: str, **options: Any) -> Family:
    torch.manual_seed(0)
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 4, 8),
        decoder_block_out_channels=(8, 4, 8),
        num_encoder_blocks=(1, 2, 1),
        num_decoder_blocks=(2, 1, 1),
        **options,
    )
    net: Any = getattr(randomised(model), half)
    return Family(net, net.layers, lambda: build_program(net))


FAMILIES: dict[str, Callable[[], Family]] = {
    "decoder": decoder,
    "decoder with quant": lambda: decoder(quant=True),
    "decoder with attention in levels": lambda: decoder(attn_resolutions=(256, 64), resolution=256),
    "decoder without attention": lambda: decoder(attn_type="none"),
    "decoder before its end": lambda: decoder(give_pre_end=True),
    "decoder before its end, attention last": lambda: decoder(
        give_pre_end=True, attn_resolutions=(256,), resolution=256
    ),
    "decoder with tanh": lambda: decoder(tanh_out=True),
    "decoder of one group": lambda: decoder(num_groups=1),
    "decoder of as many groups as channels": lambda: decoder(num_groups=8, ch_mult=(1, 1)),
    "decoder that narrows and widens": lambda: decoder(ch_mult=(2, 1, 3), num_res_blocks=2),
    "decoder of one level": lambda: decoder(ch_mult=(1,)),
    "decoder of one block": lambda: decoder(num_res_blocks=0),
    "encoder": encoder,
    "encoder with quant": lambda: encoder(quant=True),
    "encoder with attention in levels": lambda: encoder(attn_resolutions=(256, 64), resolution=256),
    "encoder without attention": lambda: encoder(attn_type="none", double_z=False),
    "encoder that narrows and widens": lambda: encoder(ch_mult=(2, 1, 3), num_res_blocks=2),
    "encoder of one level": lambda: encoder(ch_mult=(1,)),
    "encoder without blocks": lambda: encoder(num_res_blocks=0),
    "taesd decoder": lambda: tiny("decoder"),
    "taesd encoder": lambda: tiny("encoder", act_fn="silu"),
    "taef2 decoder": lambda: tiny("decoder", midblock_gn=True, act_fn="gelu"),
    "taef2 encoder": lambda: tiny("encoder", midblock_gn=True),
}


def hard_input(program: Program, batch: int, height: int, width: int) -> Tensor:
    """A gradient, noise and one outlier: white noise alone hides wrong statistics."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, program.in_channels, height, width, generator=generator, dtype=torch.float64)
    x += torch.linspace(-3, 3, width, dtype=torch.float64) + torch.linspace(-2, 4, height, dtype=torch.float64)[:, None]
    x[0, 0, 0, -1] = 25.0
    return x


def run(program: Program, schedule: Schedule, x: Tensor, channels_last: bool = True) -> Tensor:
    context = Context(x.shape[0], x.dtype, x.device, channels_last, spill=Spill(x.device))
    rows: list[Tensor] = []
    at = 0

    def emit(top: int, strip: Tensor) -> None:
        nonlocal at
        assert top == at
        at += strip.shape[2]
        rows.append(strip.clone())

    run_program(program, schedule, context, x, emit)
    return torch.cat(rows, dim=2)


def pixels(name: str) -> int:
    """Rows of input that are enough for the family's levels."""
    return 4 if "encoder" in name else 1
