"""Which device and dtype; reading both from text. Devices that are not here are imitated by their answers."""

import platform
import sys
from types import SimpleNamespace

import pytest
import torch
from exact_vae.model_management import get_torch_device, output_device, vae_device, vae_dtype, vae_offload_device
from exact_vae.model_management.devices import DTYPES, canonical_device, parse_device, parse_dtype

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CPU, CUDA, MPS, XPU = torch.device("cpu"), torch.device("cuda", 0), torch.device("mps", 0), torch.device("xpu", 0)


def pretend(monkeypatch: pytest.MonkeyPatch, cuda: int = 0, xpu: int = 0, mps: int = 0) -> None:
    for kind, count in (("cuda", cuda), ("xpu", xpu)):
        backend = getattr(torch, kind)
        monkeypatch.setattr(backend, "is_available", lambda count=count: count > 0)
        monkeypatch.setattr(backend, "device_count", lambda count=count: count)
        monkeypatch.setattr(backend, "current_device", lambda count=count: count - 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps > 0)


def pretend_card(
    monkeypatch: pytest.MonkeyPatch, name: str = "", major: int = 8, gcn: str = "", hip: str | None = None
) -> None:
    properties = SimpleNamespace(name=name, major=major, minor=0, gcnArchName=gcn)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", hip)


@pytest.mark.parametrize(
    ("here", "expected"),
    [
        ({"cuda": 2, "xpu": 1, "mps": 1}, torch.device("cuda", 1)),
        ({"xpu": 1, "mps": 1}, XPU),
        ({"mps": 1}, MPS),
        ({}, CPU),
    ],
)
def test_the_fastest_kind_is_taken(
    monkeypatch: pytest.MonkeyPatch, here: dict[str, int], expected: torch.device
) -> None:
    pretend(monkeypatch, **here)
    assert get_torch_device() == vae_device() == expected


def test_weights_and_results_wait_in_main_memory() -> None:
    assert vae_offload_device() == output_device() == CPU


@pytest.mark.parametrize("allowed", [(BF16, FP32), (FP16, BF16), (FP32,)])
def test_cpu_and_directml_compute_in_float32(allowed: tuple[torch.dtype, ...]) -> None:
    assert vae_dtype("cpu", allowed) == FP32
    assert vae_dtype(torch.device("privateuseone", 0), allowed) == FP32


def test_no_device_means_the_compute_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, xpu=1)
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: True, raising=False)
    assert vae_dtype() == BF16


@pytest.mark.parametrize(
    ("name", "major", "allowed", "expected"),
    [
        ("NVIDIA GeForce RTX 3060", 8, (BF16, FP32), BF16),
        ("NVIDIA H200", 9, (BF16, FP32), BF16),
        ("NVIDIA GeForce RTX 2080", 7, (BF16, FP32), FP32),
        ("NVIDIA GeForce RTX 2080", 7, (BF16, FP16, FP32), FP16),
        ("NVIDIA GeForce RTX 2080", 7, (BF16, FP32, FP16), FP32),
        ("Tesla T4", 7, (FP16, FP32), FP16),
        ("NVIDIA GeForce GTX 1660 Ti", 7, (FP16, FP32), FP32),
        ("NVIDIA T600 Laptop GPU", 7, (FP16, FP32), FP32),
        ("NVIDIA GeForce GTX 1080", 6, (FP16, FP32), FP16),
        ("NVIDIA GeForce GTX 960", 5, (FP16, FP32), FP32),
        ("NVIDIA H200", 9, (), FP32),
    ],
)
def test_nvidia_by_compute_capability_and_name(
    monkeypatch: pytest.MonkeyPatch, name: str, major: int, allowed: tuple[torch.dtype, ...], expected: torch.dtype
) -> None:
    pretend_card(monkeypatch, name=name, major=major)
    assert vae_dtype(CUDA, allowed) == expected


@pytest.mark.parametrize(
    ("gcn", "expected"),
    [
        ("gfx90a:sramecc+:xnack-", BF16),
        ("gfx942", BF16),
        ("gfx1100", BF16),
        ("gfx1201", BF16),
        ("gfx1030", FP32),
        ("gfx906", FP32),
    ],
)
def test_amd_by_architecture_not_by_its_high_capability(
    monkeypatch: pytest.MonkeyPatch, gcn: str, expected: torch.dtype
) -> None:
    pretend_card(monkeypatch, major=10, gcn=gcn, hip="6.2")
    assert vae_dtype(CUDA) == expected
    assert vae_dtype(CUDA, (FP16, FP32)) == FP16


@pytest.mark.parametrize(("version", "expected"), [("13.6.1", FP32), ("14.0", BF16), ("15.1", BF16), ("", FP32)])
def test_mps_has_bfloat16_from_macos_14(monkeypatch: pytest.MonkeyPatch, version: str, expected: torch.dtype) -> None:
    monkeypatch.setattr(platform, "mac_ver", lambda: (version, ("", "", ""), "arm64"))
    assert vae_dtype(MPS) == expected


def test_xpu_says_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "is_bf16_supported", lambda: False, raising=False)
    assert vae_dtype(XPU) == FP32


def test_devices_are_named_as_their_tensors_name_them(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=3)
    assert canonical_device(torch.device("cuda")) == torch.device("cuda", 2)
    assert canonical_device(torch.device("cuda:1")) == torch.device("cuda", 1)
    assert canonical_device(torch.device("mps")) == MPS
    assert canonical_device(torch.device("cpu:0")) == torch.empty(0).device
    assert canonical_device(torch.device("meta:0")) == torch.device("meta")


def test_parse_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=2)
    assert parse_device("cpu") == CPU
    assert parse_device("cuda") == torch.device("cuda", 1)
    assert parse_device("cuda:0") == parse_device(torch.device("cuda", 0)) == CUDA


@pytest.mark.parametrize(
    ("text", "cuda", "message"),
    [
        ("cuda", 0, "device: expected one of cpu, got 'cuda': this PyTorch finds no such device here"),
        ("mps", 1, "device: expected one of cpu, cuda, got 'mps': this PyTorch finds no such device here"),
        ("cuda:2", 2, "device: expected one of cpu, cuda:0..1, got 'cuda:2': numbers start at 0"),
        ("gpu", 0, "device: expected one of cpu, got 'gpu': write the kind"),
        ("meta", 0, "device: expected one of cpu, got 'meta': this PyTorch finds no such device here"),
        ("privateuseone:0", 0, "device: expected one of cpu, got 'privateuseone:0': this PyTorch finds"),
    ],
)
def test_parse_device_says_what_is_here(monkeypatch: pytest.MonkeyPatch, text: str, cuda: int, message: str) -> None:
    pretend(monkeypatch, cuda=cuda)
    with pytest.raises(ValueError, match="device") as caught:
        parse_device(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_parse_device_knows_directml_once_it_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_directml", SimpleNamespace(device_count=lambda: 1))
    assert parse_device("privateuseone:0") == torch.device("privateuseone", 0)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("bf16", BF16),
        ("bfloat16", BF16),
        ("torch.bfloat16", BF16),
        ("FP32", FP32),
        ("float16", FP16),
        ("fp64", torch.float64),
        *((name, torch.float16) for name in ("half", "torch.half", "f16", " FP16 ")),
        *((name, torch.float32) for name in ("float", "f32")),
        *((name, torch.float64) for name in ("double", "f64")),
    ],
)
def test_parse_dtype(name: str, dtype: torch.dtype) -> None:
    assert parse_dtype(name) == parse_dtype(dtype) == dtype


NARROW = "nothing computes in 8 bits, a file of such weights is read in one of these"


@pytest.mark.parametrize(
    ("name", "shown", "way"),
    [
        *((name, repr(name), NARROW) for name in ("int8", "float8", "fp8", "float8_e4m3fn", "uint8", "f8")),
        *((dtype, str(dtype), NARROW) for dtype in (torch.int8, torch.float8_e4m3fn)),
        *((name, repr(name), "choose one of these") for name in ("", "16", "tf32", 16, None)),
        (torch.int64, "torch.int64", "choose one of these"),
        *((name, repr(name), "float16 is probably meant") for name in ("flaot16", "torch.floa16")),
        ("bflot16", "'bflot16'", "bfloat16 is probably meant"),
    ],
)
def test_parse_dtype_lists_the_names(name: object, shown: str, way: str) -> None:
    for what, also in (("dtype", ()), ("torch_dtype", ("auto",))):
        with pytest.raises(ValueError, match="dtype") as caught:
            parse_dtype(name, what, also)
        assert str(caught.value) == f"{what}: expected one of {', '.join((*also, *DTYPES))}, got {shown}: {way}"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_real_cuda_device_is_chosen_and_named_with_its_index() -> None:
    device = parse_device("cuda")
    assert get_torch_device() == device == torch.empty(0, device="cuda").device
    assert vae_dtype(device) in (BF16, FP32)
