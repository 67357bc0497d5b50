"""What a norm of single pixels takes beside a window is counted, whoever holds the rows that it is made of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from exact_vae.benchmarks.meter import LiveTensorMeter
from exact_vae.vae_model.exact.extent import Extent
from exact_vae.vae_model.exact.layer import Conv, PixelNorm
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.convolved import ConvolvedSource
from exact_vae.vae_model.exact.stream.pixel_fill import PixelFill
from exact_vae.vae_model.exact.stream.shared import Shared
from exact_vae.vae_model.exact.stream.source import InputSource
from exact_vae.vae_model.families.wan.layers import RMS_norm
from torch import nn


@pytest.mark.usefixtures("inference")
def test_rows_that_another_reader_holds_count_as_own_ones() -> None:
    context, size = Context(1, torch.float16, torch.device("meta")), Extent(64, 32, 48)
    with torch.device("meta"):
        norm: Any = RMS_norm(64).half()
        conv = Conv(nn.Conv2d(64, 64, 3, padding=1).half(), "conv", 64, 64)
        x = torch.empty(1, 64, 32, 48, dtype=torch.float16)
    shared = Shared(context, size, lambda t, b: InputSource(context, size, t, b, lambda t, b: x[:, :, t:b]), lag=2)
    fill = PixelFill(context, PixelNorm(norm, "norm", 64), "silu")
    rows = ConvolvedSource(context, conv, 0, 32, shared.reader, size, fill)
    shared.reader(0, 32)
    most, _ = rows.cost(0, 24).first
    with LiveTensorMeter("meta") as meter:
        rows.take(24)
    assert meter.peak_bytes <= 1.01 * most  # every plan adds as much for numbers of channels and pixels
    assert most <= 1.15 * meter.peak_bytes
