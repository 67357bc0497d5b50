"""The loader node inside ComfyUI: the host's lists, the host's device and dtype, the host's memory management."""

from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS
from exact_vae.model_management.vae_files import find_vae, list_vaes
from exact_vae.vae_model.errors import InputError
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from safetensors.torch import save_file

Host = Any


@pytest.fixture
def files(stub_host: Host, small_file: Path, tmp_path: Path) -> Host:
    """A file in models/vae, a complete pair in models/vae_approx, and half of another."""
    torch.manual_seed(0)
    tiny = AutoencoderTiny(encoder_block_out_channels=(64,) * 4, decoder_block_out_channels=(64,) * 4)
    halves: dict[str, Path] = {}
    for half in ("encoder", "decoder"):
        layers = getattr(tiny, half).layers.state_dict()
        # ComfyUI's files count the decoder's clamp as layer 0.
        shift = half == "decoder"
        named = {f"{int(k.split('.')[0]) + shift}.{k.split('.', 1)[1]}": v.clone() for k, v in layers.items()}
        path = tmp_path / f"taesdxl_{half}.safetensors"
        save_file(named, path)
        halves[path.name] = path
    lonely = {"taesd_decoder.safetensors": halves["taesdxl_decoder.safetensors"]}
    stub_host.files = {"vae": {"small.safetensors": small_file}, "vae_approx": halves | lonely}
    return stub_host


def load(name: str, dtype: str = "auto") -> Any:
    (vae,) = NODE_CLASS_MAPPINGS["ExactVAELoader"]().load_vae(name, dtype)
    return vae


def test_only_complete_pairs_are_listed(files: Host) -> None:
    assert list_vaes() == ["small.safetensors", "taesdxl", "bundled"]
    with pytest.raises(InputError, match="expected one of 3 listed VAEs"):
        find_vae("taesd")


def test_a_tiny_vae_comes_with_the_scale_of_its_model(files: Host) -> None:
    vae = load("taesdxl", "float32")
    model = vae.first_stage_model
    assert (model.scaling_factor, model.shift_factor) == (0.13025, 0.0)
    z = torch.randn(1, 4, 6, 7)
    raw = model.decode(z * 0.13025)[0]  # the definition; about -1..1
    torch.testing.assert_close(vae.decode(z), ((raw + 1) / 2).clamp(0, 1).movedim(1, -1), rtol=0, atol=2e-5)


@pytest.mark.parametrize("memory", [0.0, 0.02])
def test_our_vae_keeps_to_the_host_s_rules(files: Host, memory: float) -> None:
    vae = load("small.safetensors", "float32")
    assert vae.patcher.model is vae.first_stage_model
    assert vae.device == files.modules["comfy.model_management"].vae_device()
    files.forget()
    output = NODE_CLASS_MAPPINGS["ExactVAEDecode"]().decode({"samples": torch.randn(1, 4, 32, 32)}, vae, memory)
    (report,) = output["ui"]["exact_vae"]
    assert files.memory_required == [report["plan_bytes"]]
    assert files.interrupt_checks > 10
    assert files.events[-1][1]["done"]
    if memory:
        assert report["plan_bytes"] <= report["budget_bytes"] == int(memory * 2**30)


def test_a_cancel_reaches_our_vae(files: Host) -> None:
    vae = load("small.safetensors", "float32")
    files.interrupt_at = 5
    with pytest.raises(files.interrupt):
        vae.decode(torch.randn(1, 4, 16, 16))


def test_auto_takes_the_host_s_dtype(files: Host) -> None:
    vae = load("small.safetensors")
    management = files.modules["comfy.model_management"]
    assert vae.vae_dtype == management.vae_dtype(vae.device, [torch.bfloat16, torch.float32])


def test_plan_node_for_every_kind_of_vae(files: Host) -> None:
    plan = NODE_CLASS_MAPPINGS["ExactVAEPlan"]().plan
    for vae in (load("small.safetensors", "float32"), files.make_vae(), files.make_vae("taesd")):
        for direction in ("decode", "encode"):
            output = plan(vae, 1024, 512, direction)
            (text,) = output["result"]
            assert output["ui"]["text"] == [text]
            assert text.startswith(f"{direction} 1024 x 512, float32, cpu: ")
            assert "peak" in text
    assert "expected a budget of at least" in plan(files.make_vae(), 1024, 512, memory=0.001)["result"][0]
    assert plan(files.make_vae("video"), 64, 64)["result"][0].startswith("This VAE runs by its own method: ")
