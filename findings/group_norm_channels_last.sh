#!/usr/bin/env bash
# PyTorch 2.13.0 (2.14.1, too): float32 GroupNorm on CPUs depends on the memory order. Of a channels-last tensor it takes
# the variance as the mean of squares minus the square of the mean, in float32, and where the mean is large against the
# spread nothing is left of it. Values of 1000 +- 1, normalised, should lie between -1.8 and 1.8; contiguous they do
# (error 1.3e-4 against float64), channels-last they are off by more than 300, without a warning.
#
# Who meets it: whoever moves a convolutional model with GroupNorm to channels-last for speed, and whoever uses such a
# run as the reference of a comparison.
#
# Seen: contiguous 0.00012922286987304688, channels_last 314.6800842285156
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy torch==2.13.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch

torch.manual_seed(0)
torch.set_num_threads(1)
x = 1000 + torch.rand(1, 32, 256, 256) * 2 - 1
right = torch.nn.functional.group_norm(x.double(), 8)
errors = {}
for name, order in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
    normed = torch.nn.functional.group_norm(x.contiguous(memory_format=order), 8)
    errors[name] = float((normed.double() - right).abs().max())
print(torch.__version__, errors)
sys.exit(not (errors["contiguous"] < 1e-3 and errors["channels_last"] > 1))
PYTHON
