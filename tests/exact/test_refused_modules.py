"""Every module without a rule is refused, in one line that names it; nothing is guessed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import exact_vae
import pytest
import torch
from exact_vae import InputError, load_vae
from exact_vae.tests.exact.programs import build_program
from exact_vae.vae_model.exact.layer import UnsupportedModule
from exact_vae.vae_model.exact.ops.attend import Attend
from exact_vae.vae_model.exact.program import Op
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.runs import sharded
from torch import Tensor, nn

LDM: dict[str, Any] = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "num_groups": 4}


def decoder(**options: Any) -> Any:
    return Decoder(**{**LDM, "out_ch": 3, **options}).eval()


def encoder(**options: Any) -> Any:
    return Encoder(**{**LDM, "in_channels": 3, **options}).eval()


def tiny(**options: Any) -> Any:
    return AutoencoderTiny(
        encoder_block_out_channels=(4, 8),
        decoder_block_out_channels=(8, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        **options,
    ).eval()


class Casting(nn.Conv2d):
    """A host's layer that fetches its weight itself, and says so."""

    comfy_cast_weights = True

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 1


class Doubling(nn.Conv2d):
    """A layer that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class DoublingNorm(nn.GroupNorm):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def test_a_hosts_casting_layers_are_taken() -> None:
    model = decoder()
    model.conv_in = Casting(4, 16, 3, padding=1)
    assert build_program(model).ops[0].conv.module is model.conv_in  # type: ignore[union-attr]


def setting(path: str, value: Any) -> Callable[[nn.Module], None]:
    """Puts a value (what a function returns) at a dotted path."""

    def change(model: nn.Module) -> None:
        owner, _, name = path.rpartition(".")
        setattr(model.get_submodule(owner), name, value() if callable(value) else value)

    return change


def hooking(path: str, kind: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        getattr(model.get_submodule(path), kind)(lambda *_: None)

    return change


def active_dropout(model: nn.Module) -> None:
    model.up[0].block[0].dropout = nn.Dropout(0.1).train()  # type: ignore[index,union-attr]


def conv(*arguments: Any, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*arguments, **options)


def renamed(model: nn.Module) -> None:
    model.mid.block_1.__class__ = type("OtherBlock", (type(model.mid.block_1),), {})  # type: ignore[union-attr]


def parametrized(model: nn.Module) -> None:
    torch.nn.utils.parametrizations.weight_norm(model.conv_in)  # type: ignore[arg-type]


REFUSED = {
    "hook": ("mid.block_1.conv1", hooking("mid.block_1.conv1", "register_forward_hook"), "without hooks"),
    "pre-hook": ("up.1.attn", hooking("up.1.attn", "register_forward_pre_hook"), "without hooks"),
    "hook on all": ("Decoder", hooking("", "register_forward_hook"), "without hooks"),
    "forward": ("mid.attn_1", setting("mid.attn_1.forward", lambda: print), "own forward"),
    "conv forward": ("conv_out", setting("conv_out._conv_forward", lambda: print), "own forward"),
    "parametrised": ("conv_in", parametrized, "parametrised"),
    "dropout": ("up.0.block.0.dropout", active_dropout, "call eval"),
    "subclass of conv": ("conv_in", setting("conv_in", lambda: Doubling(4, 16, 3, padding=1)), "plain Conv2d"),
    "subclass of norm": ("norm_out", setting("norm_out", lambda: DoublingNorm(4, 8)), "plain GroupNorm"),
    "3-D": ("conv_in", setting("conv_in", lambda: nn.Conv3d(4, 16, 3, padding=1)), "got Conv3d"),
    "linear q": ("mid.attn_1.q", setting("mid.attn_1.q", lambda: nn.Linear(16, 16)), "got Linear"),
    "kernel": ("conv_in", setting("conv_in", conv(4, 16, 5, padding=2)), r"got \(\(5, 5\)"),
    "stride": ("conv_out", setting("conv_out", conv(8, 3, 3, 2, 1)), r"\(2, 2\)"),
    "dilation": ("conv_out", setting("conv_out", conv(8, 3, 3, padding=2, dilation=2)), r"\(2, 2\)"),
    "groups": ("conv_out", setting("conv_out", conv(8, 4, 3, padding=1, groups=2)), r", 2\)"),
    "same": ("conv_out", setting("conv_out", conv(8, 3, 3, padding="same")), "same"),
    "1x1 with pad": ("mid.attn_1.k", setting("mid.attn_1.k", conv(16, 16, 1, padding=1)), r"\(1, 1\)"),
    "padding mode": ("conv_in", setting("conv_in.padding_mode", "wrap"), "got wrap"),
    "no affine": ("norm_out", setting("norm_out", lambda: nn.GroupNorm(4, 8, affine=False)), "affine GroupNorm"),
    "other norm": ("mid.block_2.norm2", setting("mid.block_2.norm2", lambda: nn.BatchNorm2d(16)), "got BatchNorm2d"),
    "block class": ("mid.block_1", renamed, "expected ResnetBlock, got OtherBlock"),
    "attention class": ("mid.attn_1", setting("mid.attn_1", lambda: nn.Sequential()), "AttnBlock"),
    "child of a block": ("up.0.block.1", setting("up.0.block.1.scale", lambda: nn.Linear(1, 1)), "got also scale"),
    "child of a level": ("up.1", setting("up.1.extra", lambda: nn.Linear(1, 1)), "got also extra"),
    "child of attention": ("mid.attn_1", setting("mid.attn_1.rope", lambda: nn.Linear(1, 1)), "got also rope"),
    "child of the middle": ("mid", setting("mid.block_3", lambda: nn.Linear(1, 1)), "got also block_3"),
    "child of all": ("Decoder", setting("refiner", lambda: nn.Linear(1, 1)), "got also refiner"),
    "child of upsample": ("up.1.upsample", setting("up.1.upsample.blur", lambda: nn.Linear(1, 1)), "got also blur"),
    "upsample class": ("up.1.upsample", setting("up.1.upsample", lambda: nn.PixelShuffle(2)), "expected Upsample"),
    "time": ("Decoder", setting("temb_ch", 512), "got 512 channels"),
}
"""What is done to a decoder, the module that the message names, and a piece of the message."""


def assert_refused(model: Any, name: str, text: str, **around: Any) -> None:
    with pytest.raises(UnsupportedModule, match=text) as caught:
        build_program(model, **around)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert "\n" not in message
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_rule_is_refused_by_name(case: str) -> None:
    model = decoder(ch_mult=(1, 2))
    build_program(model)  # It is the change that is refused.
    name, change, text = REFUSED[case]
    change(model)
    assert_refused(model, name, text)


def test_options_that_have_no_rule_are_refused() -> None:
    assert_refused(decoder(attn_type="linear"), "mid.attn_1", "got LinAttnBlock")
    assert_refused(decoder(resamp_with_conv=False), "up.1.upsample", "resampling with a convolution")
    assert_refused(encoder(resamp_with_conv=False), "down.0.downsample", "resampling with a convolution")
    assert_refused(decoder(), "post_quant_conv", "got Linear", before=nn.Linear(4, 4))
    assert_refused(decoder(), "post_quant_conv", r"got \(\(3, 3\)", before=nn.Conv2d(4, 4, 3, padding=1))
    assert_refused(encoder(), "quant_conv", "got Identity", after=nn.Identity())
    hooked = nn.Conv2d(4, 4, 1)
    hooked.register_forward_hook(lambda *_: None)
    assert_refused(decoder(), "Conv2d", "without hooks", before=hooked)
    assert_refused(nn.Linear(1, 1), "Linear", "none of up, down and layers")
    strided = encoder()
    strided.down[0].downsample.conv = nn.Conv2d(8, 8, 3, stride=1)
    assert_refused(strided, "down.0.downsample.conv", r"\(1, 1\), \(0, 0\)")


TINY_REFUSED = {
    "upsampling mode": ("layers.3", setting("layers.3", lambda: nn.Upsample(scale_factor=2, mode="bilinear")), "x2"),
    "upsampling factor": ("layers.3", setting("layers.3", lambda: nn.Upsample(scale_factor=3)), "x2"),
    "unknown layer": ("layers.5", setting("layers.5", lambda: nn.Linear(1, 1)), "got Linear"),
    "activation first": ("layers.0", setting("layers.0", lambda: nn.ReLU()), "convolution or a block"),
    "no convolution": ("layers.4", setting("layers.4", lambda: nn.ReLU()), "a convolution"),
    "activation": ("layers.2.conv.1", setting("layers.2.conv.1", lambda: nn.ELU()), "got ELU"),
    "approximate": ("layers.2.fuse", setting("layers.2.fuse", lambda: nn.GELU("tanh")), "got GELU"),
    "two activations": ("layers.2.conv", setting("layers.2.conv.3", lambda: nn.SiLU()), "one activation"),
    "skip": ("layers.2.skip", setting("layers.2.skip", conv(8, 8, 3, padding=1)), r"got \(\(3, 3\)"),
    "pool": ("layers.2.pool", setting("layers.2.pool", lambda: nn.Sequential(nn.ReLU())), "got 1 layers"),
    "norm of the pool": ("layers.2.pool.1", setting("layers.2.pool.1", lambda: nn.LayerNorm(1)), "GroupNorm"),
    "child of a block": ("layers.5", setting("layers.5.extra", lambda: nn.Linear(1, 1)), "got also extra"),
    "child of all": ("DecoderTiny", setting("extra", lambda: nn.Linear(1, 1)), "got also extra"),
    "stride": ("layers.6", setting("layers.6", conv(4, 3, 3, stride=3, padding=1)), r"got \(\(3, 3\), \(3, 3\)"),
}


@pytest.mark.parametrize("case", TINY_REFUSED)
def test_tiny_halves_are_refused_by_name(case: str) -> None:
    model = tiny(midblock_gn=True).decoder
    build_program(model)
    name, change, text = TINY_REFUSED[case]
    change(model)
    assert_refused(model, name, text)


def test_any_sequence_of_layers_is_not_a_tiny_half() -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = tiny().decoder.layers

    assert_refused(Other(), "Other", "expected EncoderTiny or DecoderTiny")


def test_dropout_that_is_off_is_no_obstacle() -> None:
    assert build_program(decoder(dropout=0.5)).level_count == 2
    assert build_program(decoder(dropout=0.0).train()).level_count == 2
    assert_refused(decoder(dropout=0.5).train(), "mid.block_1.dropout", "call eval")


NO_RULE_YET = {
    "other dropout": ("up.0.block.0.dropout", setting("up.0.block.0.dropout", lambda: nn.Dropout2d(0.5))),
    "no dropout at all": ("up.0.block.0.dropout", setting("up.0.block.0.dropout", lambda: nn.Tanh())),
    "other activation": ("up.0.block.0", setting("up.0.block.0.swish", lambda: nn.ReLU())),
    "no activation": ("up.0.block.0.swish", setting("up.0.block.0.swish", lambda: nn.Identity())),
    "factor": ("up.1.upsample", setting("up.1.upsample.scale_factor", 3.0)),
    "no attention": ("mid", lambda model: delattr(model.mid, "attn_1")),
    "no norm": ("mid.block_1", lambda model: delattr(model.mid.block_1, "norm1")),
    "fewer attentions": ("up.0", lambda model: model.up[0].attn.append(nn.Identity())),  # type: ignore[index]
}
"""What is done to a decoder, and how the message begins."""


@pytest.mark.parametrize("case", NO_RULE_YET)
def test_what_is_missing_or_other_than_its_name_says_is_refused(case: str) -> None:
    model = decoder()
    name, change = NO_RULE_YET[case]
    change(model)
    with pytest.raises(UnsupportedModule, match=f"^{name}") as caught:
        build_program(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [slice(0, 4), slice(2, None), slice(0, 0)], ids=["up last", "block first", "nothing"])
def test_parts_of_a_tiny_half_are_refused(kept: slice) -> None:
    model = tiny().decoder
    model.layers = model.layers[kept]
    with pytest.raises(UnsupportedModule):
        build_program(model)


def test_reasons_hold_what_was_found_and_callers_say_what_runs_instead() -> None:
    root = Path(exact_vae.__file__).parent
    files = [path for folder in ("vae_model", "model_management") for path in (root / folder).rglob("*.py")]
    assert len(files) > 100
    found = [path for path in files if "runs untiled" in path.read_text(encoding="utf-8")]
    assert found == []


def test_every_kind_of_op_says_whether_ranks_can_share_its_rows() -> None:
    kinds = Op.__subclasses__()
    assert len(kinds) == 16
    assert all(kind.shares_rows for kind in kinds)
    assert not Op.shares_rows  # one that says nothing is refused


def test_sharding_refuses_an_op_that_cannot_be_shared_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = load_vae(device="cpu")
    sharded.require_sharded(vae)
    monkeypatch.setattr(Attend, "shares_rows", False)
    with pytest.raises(InputError, match=r"rows can be shared, got mid\.attn_1\.proj_out, which needs all rows: leave"):
        sharded.require_sharded(vae)
