"""Checkpoints of Lightning: what their hyper_parameters tell of the network counts, as the header of a file of ours."""

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import load_vae
from exact_vae.vae_model.families.ldm.autoencoder import AutoencoderKL
from exact_vae.vae_model.files.weights import told_settings

DDCONFIG: dict[str, Any] = {
    "ch": 8, "out_ch": 3, "in_channels": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "attn_resolutions": (),
    "resolution": 32, "z_channels": 4, "double_z": True, "num_groups": 4,
}  # fmt: skip


@pytest.mark.parametrize("change", [{}, {"tanh_out": True}, {"give_pre_end": True}, {"num_groups": 2}])
def test_what_it_was_trained_as_is_what_is_loaded(tmp_path: Path, change: dict[str, Any]) -> None:
    arguments = DDCONFIG | change
    torch.manual_seed(0)
    model = AutoencoderKL(embed_dim=4, ddconfig=arguments).eval()
    content = {"state_dict": model.state_dict(), "hyper_parameters": {"embed_dim": 4, "ddconfig": arguments}}
    torch.save(content, tmp_path / "last.ckpt")
    loaded = load_vae(tmp_path / "last.ckpt", device="cpu", dtype="float32").loaded.model
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        # The same module with the same weights: the same operations in the same order.
        torch.testing.assert_close(loaded.decode(z), model.decode(z), rtol=0, atol=0)


def test_what_is_no_argument_of_ours_is_passed_over() -> None:
    odd: dict[str, Any] = {"ddconfig": {"num_groups": "many", "tanh_out": "yes"}, "decoder_ddconfig": None}
    assert told_settings({"hyper_parameters": odd}) == {}
    assert told_settings({"hyper_parameters": 3}) == told_settings({}) == {}
    own = {"ddconfig": {"num_groups": 8}, "decoder_ddconfig": {"num_groups": 4, "tanh_out": True}}
    wanted = {"encoder_norm_num_groups": "8", "decoder_norm_num_groups": "4", "tanh_out": "True"}
    assert told_settings({"hyper_parameters": own}) == wanted
