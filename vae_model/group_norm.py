"""GroupNorm whose result does not depend on the memory order of its input."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class GroupNorm(nn.GroupNorm):
    """torch.nn.GroupNorm, by its contiguous kernel on CPUs; (B, C, ...) of any float dtype -> the same shape and dtype.

    For channels-last inputs PyTorch's CPU kernel takes the variance as the mean of the squares minus the square of the
    mean: float32 values of 1000 +- 1 come out wrong by 5000 (2.13.0; aten/src/ATen/native/cpu/group_norm_kernel.cpp).
    It also runs where all sides are 1, which says both orders. Three dimensions always take the other kernel.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.device.type != "cpu" or input.ndim < 4:
            return super().forward(input)
        flat = input.flatten(2)  # (B, C, N), a view of either order
        return functional.group_norm(flat, self.num_groups, self.weight, self.bias, self.eps).view(input.shape)
