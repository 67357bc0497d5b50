"""What a ddconfig may say."""

from __future__ import annotations

from typing import Any


def encoder_arguments(
    *,
    ch: int,
    in_channels: int,
    out_ch: int,
    num_res_blocks: int,
    z_channels: int,
    ch_mult: tuple[int | float, ...] = (1, 2, 4, 8),
    attn_resolutions: tuple[int, ...] = (),
    dropout: float = 0.0,
    resamp_with_conv: bool = True,
    resolution: int = 256,
    double_z: bool = True,
    use_linear_attn: bool = False,
    attn_type: str = "vanilla",
    num_groups: int = 32,
    conv_shortcut: bool = False,
    tanh_out: bool = False,
    give_pre_end: bool = False,
) -> dict[str, Any]:
    """The arguments a ddconfig may have, with their types."""
    return locals()
