"""The bundled VAE in the width that ComfyUI's own loader builds (128, 256, 512, 512), with the same results.

Every channel is laid into a group of more channels by a map that keeps the group's mean and mean square, so that each
GroupNorm does what it did; convolutions read the first channels of each group and write through the map. Where the
narrow network has a shortcut and the wide one has none (96 channels to 128, both 512 here), the convolution before it
writes the shortcut's result into the other half of the groups. Blocks that only the wide network has add nothing.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

NARROW_GROUPS, WIDE_GROUPS = 16, 32
WIDE = {32: 128, 64: 256, 96: 512, 128: 512}
State = dict[str, Tensor]


def _block(narrow: int, wide: int) -> Tensor:
    """(wide, narrow): the identity first, the rest so that the mean and the mean square of the group stay."""
    rest = wide - narrow
    ones_in, ones_out = torch.ones(narrow, dtype=torch.float64), torch.ones(rest, dtype=torch.float64)
    draw = torch.Generator().manual_seed(0)

    def basis(first: Tensor) -> Tensor:
        columns = torch.cat([first[:, None], torch.randn(len(first), narrow - 1, generator=draw).double()], 1)
        q = torch.linalg.qr(columns).Q
        return q * torch.sign(q[:, :1].sum())

    below = (rest / narrow) ** 0.5 * basis(ones_out) @ basis(ones_in).T
    return torch.cat([torch.eye(narrow, dtype=torch.float64), below])


def _lay(channels: int, half: int = 0) -> Tensor:
    """(wide, channels): where the narrow channels go; half 0 or 1 of the wide groups."""
    wide = WIDE[channels]
    size, narrow = wide // WIDE_GROUPS, channels // NARROW_GROUPS
    laid = torch.zeros(wide, channels, dtype=torch.float64)
    for group in range(NARROW_GROUPS):
        top = (half * NARROW_GROUPS + group) * size
        laid[top : top + size, group * narrow : (group + 1) * narrow] = _block(narrow, size)
    return laid


def _places(channels: int, half: int = 0) -> Tensor:
    """The wide channels that hold the narrow ones as they are."""
    size, narrow = WIDE[channels] // WIDE_GROUPS, channels // NARROW_GROUPS
    groups = half * NARROW_GROUPS + torch.arange(NARROW_GROUPS)
    return (groups[:, None] * size + torch.arange(narrow)).flatten()


class _Widener:
    def __init__(self, narrow: State) -> None:
        self.narrow, self.wide = {name: value.double() for name, value in narrow.items()}, {}
        self.stream = 0  # the half that holds the values

    def conv(self, name: str, out: Tensor | None, half: int | None, like: str | None = None) -> None:
        """`out`: the map for what it writes, None for none; `half`: the one it reads, None for a plain input."""
        weight, bias = self.narrow[f"{like or name}.weight"], self.narrow[f"{like or name}.bias"]
        self.put(name, weight, bias, out, half)

    def put(self, name: str, weight: Tensor, bias: Tensor, out: Tensor | None, half: int | None) -> None:
        if out is not None:
            weight, bias = torch.einsum("wo,oikl->wikl", out, weight), out @ bias
        if half is not None:
            narrow = weight
            weight = torch.zeros(len(narrow), WIDE[narrow.shape[1]], *narrow.shape[2:], dtype=torch.float64)
            weight[:, _places(narrow.shape[1], half)] = narrow
        self.wide[f"{name}.weight"] = self.wide.get(f"{name}.weight", 0) + weight
        self.wide[f"{name}.bias"] = self.wide.get(f"{name}.bias", 0) + bias

    def norm(self, name: str, half: int) -> None:
        for part in ("weight", "bias"):
            narrow = self.narrow[f"{name}.{part}"]
            wide = self.wide[f"{name}.{part}"] = torch.zeros(WIDE[len(narrow)], dtype=torch.float64)
            wide[_places(len(narrow), half)] = narrow

    def resnet(self, name: str) -> None:
        into, out = self.narrow[f"{name}.norm1.weight"].numel(), self.narrow[f"{name}.norm2.weight"].numel()
        self.norm(f"{name}.norm1", self.stream)
        self.conv(f"{name}.conv1", _lay(out), self.stream)
        self.norm(f"{name}.norm2", 0)
        if f"{name}.nin_shortcut.weight" in self.narrow:
            before, self.stream = self.stream, 1 if WIDE[into] == WIDE[out] else 0
            if WIDE[into] != WIDE[out]:
                self.conv(f"{name}.nin_shortcut", _lay(out), before)
        self.conv(f"{name}.conv2", _lay(out, self.stream), 0)

    def nothing(self, name: str, channels: int) -> None:
        """A block that adds nothing."""
        wide = WIDE[channels]
        for part, shape in (("norm", (wide,)), ("conv", (wide, wide, 3, 3))):
            for number in (1, 2):
                self.wide[f"{name}.{part}{number}.weight"] = torch.zeros(shape, dtype=torch.float64)
                self.wide[f"{name}.{part}{number}.bias"] = torch.zeros(wide, dtype=torch.float64)

    def resample(self, name: str, shortcut: str) -> None:
        """A convolution between two levels; `shortcut`: that of the next block, done here where it is done nowhere."""
        weight, bias = self.narrow[f"{name}.weight"], self.narrow[f"{name}.bias"]
        self.put(name, weight, bias, _lay(len(weight), self.stream), self.stream)
        w, b = self.narrow.get(f"{shortcut}.weight"), self.narrow.get(f"{shortcut}.bias")
        if w is not None and b is not None and WIDE[w.shape[0]] == WIDE[w.shape[1]]:
            w = w[:, :, 0, 0]
            through = torch.einsum("om,mikl->oikl", w, weight)
            self.put(name, through, w @ bias + b, _lay(len(w), 1 - self.stream), self.stream)

    def middle(self, name: str) -> None:
        self.resnet(f"{name}.block_1")
        attention, channels = f"{name}.attn_1", self.narrow[f"{name}.attn_1.norm.weight"].numel()
        self.norm(f"{attention}.norm", self.stream)
        plain = torch.zeros(WIDE[channels], channels, dtype=torch.float64)
        plain[_places(channels, 0), torch.arange(channels)] = 1
        # The wide head is divided by a larger square root.
        for part, factor in (("q", (WIDE[channels] / channels) ** 0.5), ("k", 1.0), ("v", 1.0)):
            self.conv(f"{attention}.{part}", plain * factor, self.stream)
        self.conv(f"{attention}.proj_out", _lay(channels, self.stream), 0)
        self.resnet(f"{name}.block_2")


def write_wide_bundled(path: Path) -> None:
    """The file, in float32 and the layout of ldm."""
    bundled = Path(__file__).resolve().parents[2] / "vae_model" / "bundled" / "exact_vae_small.safetensors"
    maker = _Widener(load_file(str(bundled)))
    maker.conv("encoder.conv_in", _lay(32), None)
    for level, channels in enumerate((32, 64, 96, 128)):
        maker.resnet(f"encoder.down.{level}.block.0")
        maker.nothing(f"encoder.down.{level}.block.1", channels)
        if level < 3:
            maker.resample(f"encoder.down.{level}.downsample.conv", f"encoder.down.{level + 1}.block.0.nin_shortcut")
    maker.middle("encoder.mid")
    maker.norm("encoder.norm_out", maker.stream)
    maker.conv("encoder.conv_out", None, maker.stream)
    maker.stream = 0
    maker.conv("decoder.conv_in", _lay(128), None)
    maker.middle("decoder.mid")
    for level, channels in ((3, 128), (2, 96), (1, 64), (0, 32)):
        maker.resnet(f"decoder.up.{level}.block.0")
        maker.resnet(f"decoder.up.{level}.block.1")
        maker.nothing(f"decoder.up.{level}.block.2", channels)
        if level > 0:
            maker.resample(f"decoder.up.{level}.upsample.conv", f"decoder.up.{level - 1}.block.0.nin_shortcut")
    maker.norm("decoder.norm_out", maker.stream)
    maker.conv("decoder.conv_out", None, maker.stream)
    for name in ("quant_conv", "post_quant_conv"):
        maker.conv(name, None, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.float().contiguous() for name, value in maker.wide.items()}, str(path))
