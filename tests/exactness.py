"""What "exact" promises, as one comparison: the numerical contract of the project, for every test that holds it.

Strips change the order of additions and nothing else. Of the output's range, that is 1e-12 in float64 and 2e-5 in
float32. In 16 bits rounding is far larger than that, so there a result may err 1.15 times as much as the untiled run.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5}
"""Of the output's range."""
NO_WORSE = 1.15


def assert_exact(actual: Tensor, untiled: Tensor, truth: Tensor | None = None) -> None:
    """`actual` is what the untiled module makes, within the contract; of the same shape, dtype and device.

    Args:    truth: the result in float64 with the same weights. In 16 bits both are measured against it, by the root
                    of their mean square error; in float32 it takes the place of `untiled`.
    """
    spread = float(untiled.max() - untiled.min())
    assert spread > 0.01  # A comparison of constants would show nothing.
    assert (actual.shape, actual.dtype, actual.device) == (untiled.shape, untiled.dtype, untiled.device)
    if untiled.dtype in TOLERANCE:
        expected = untiled if truth is None else truth.to(untiled.device)
        actual = actual.to(expected.dtype)
        torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[untiled.dtype] * spread)
        return
    assert truth is not None
    error, own = ((values.to(truth) - truth).square().mean().sqrt() for values in (actual, untiled))
    assert own > 0
    assert error <= NO_WORSE * own  # To be better than the module is no mistake, so the comparison has one side.
