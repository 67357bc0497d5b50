"""The five nodes: their public inputs, word for word, and that they work on our VAE and on any VAE of the host."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, VAE
from exact_vae.vae_model.errors import InputError
from torch import Tensor

TILES = {"tile_size": (512, 64, 4096, 32), "overlap": (64, 0, 4096, 32)}
FRAMES = {"temporal_size": (64, 8, 4096, 4), "temporal_overlap": (8, 4, 4096, 4)}


def inputs_of(name: str) -> dict[str, Any]:
    inputs = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    return {**inputs.get("required", {}), **inputs.get("optional", {})}


@pytest.mark.parametrize(
    ("name", "required", "optional", "types"),
    [
        ("ExactVAELoader", ["vae_name"], ["dtype"], None),
        ("ExactVAEEncode", ["pixels", "vae"], [], ["IMAGE", "VAE"]),
        ("ExactVAEDecode", ["samples", "vae"], [], ["LATENT", "VAE"]),
        (
            "ExactVAEEncodeTiled",
            ["pixels", "vae", "tile_size", "overlap", "temporal_size", "temporal_overlap"],
            ["method"],
            ["IMAGE", "VAE", "INT", "INT", "INT", "INT"],
        ),
        (
            "ExactVAEDecodeTiled",
            ["samples", "vae", "tile_size", "overlap", "temporal_size", "temporal_overlap"],
            ["method"],
            ["LATENT", "VAE", "INT", "INT", "INT", "INT"],
        ),
    ],
)
def test_inputs_and_their_order(name: str, required: list[str], optional: list[str], types: list[str] | None) -> None:
    inputs = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    assert list(inputs["required"]) == required
    assert list(inputs.get("optional", {})) == optional
    if types is not None:
        assert [kind[0] for kind in inputs["required"].values()] == types


def test_defaults_and_ranges() -> None:
    for name in ("ExactVAEEncodeTiled", "ExactVAEDecodeTiled"):
        for key, numbers in (TILES | FRAMES).items():
            options = inputs_of(name)[key][1]
            assert tuple(options[field] for field in ("default", "min", "max", "step")) == numbers
        methods, options = inputs_of(name)["method"]
        assert (methods, options["default"]) == (["exact", "blend"], "exact")
    dtypes, options = inputs_of("ExactVAELoader")["dtype"]
    assert dtypes == ["auto", "float32", "bfloat16", "float16"]
    assert options["default"] == "auto"


@pytest.mark.parametrize(
    ("name", "function", "returns", "category"),
    [
        ("ExactVAELoader", "load_vae", ("VAE",), "loaders/ExactVAE"),
        ("ExactVAEEncode", "encode", ("LATENT",), "latent/ExactVAE"),
        ("ExactVAEDecode", "decode", ("IMAGE",), "latent/ExactVAE"),
        ("ExactVAEEncodeTiled", "encode", ("LATENT",), "latent/ExactVAE"),
        ("ExactVAEDecodeTiled", "decode", ("IMAGE",), "latent/ExactVAE"),
    ],
)
def test_what_the_host_reads(name: str, function: str, returns: tuple[str, ...], category: str) -> None:
    node = NODE_CLASS_MAPPINGS[name]
    assert (function, returns, category) == (node.FUNCTION, node.RETURN_TYPES, node.CATEGORY)
    assert callable(getattr(node(), function))
    assert node.DESCRIPTION
    assert len(node.OUTPUT_TOOLTIPS) == len(returns)
    assert all(kind[1]["tooltip"].strip() for kind in inputs_of(name).values())
    assert "approximate" not in NODE_DISPLAY_NAME_MAPPINGS[name]  # by default nothing of ours is


@pytest.mark.parametrize("name", ["ExactVAEEncodeTiled", "ExactVAEDecodeTiled"])
def test_what_approximates_says_so_before_anybody_runs_it(name: str) -> None:
    description = NODE_CLASS_MAPPINGS[name].DESCRIPTION
    assert "Method blend, and a VAE of another loader, are approximate" in description
    tooltip = inputs_of(name)["method"][1]["tooltip"]
    assert "blend: overlapping tiles, approximate" in tooltip
    assert "A VAE of another loader always runs its own tiles, approximate." in tooltip
    assert "unused" in inputs_of(name)["overlap"][1]["tooltip"]


def node(name: str) -> Any:
    return NODE_CLASS_MAPPINGS[name]()


def test_positional_calls_without_a_host(small_vae: VAE) -> None:
    pixels = torch.rand(1, 24, 90, 4)
    (latent,) = node("ExactVAEEncode").encode(pixels, small_vae)
    assert list(latent) == ["samples"]
    assert torch.equal(latent["samples"], small_vae.encode(pixels[..., :3]))
    (image,) = node("ExactVAEDecode").decode(latent, small_vae)
    assert torch.equal(image, small_vae.decode(latent["samples"]))
    assert image.shape == (1, 24, 88, 3)


def assert_exact(actual: Tensor, untiled: Tensor) -> None:
    spread = float(untiled.max() - untiled.min())
    assert spread > 0.01
    torch.testing.assert_close(actual, untiled, rtol=0, atol=2e-5 * spread)  # the project's bound for float32


def test_the_tiled_nodes_are_exact_and_blend_only_where_asked(small_vae: VAE) -> None:
    pixels = torch.rand(1, 72, 90, 4)
    whole = small_vae.encode(pixels, "untiled")
    (tiled,) = node("ExactVAEEncodeTiled").encode(pixels, small_vae, 64, 16, 64, 8)
    assert_exact(tiled["samples"], whole)
    (blended,) = node("ExactVAEEncodeTiled").encode(pixels, small_vae, 64, 16, 64, 8, "blend")
    assert torch.equal(blended["samples"], small_vae.encode(pixels, "blend", tile_size=64, overlap=16))
    assert not torch.equal(blended["samples"], tiled["samples"])

    image = small_vae.decode(whole, "untiled")
    (tiled_image,) = node("ExactVAEDecodeTiled").decode({"samples": whole}, small_vae, 64, 16, 64, 8)
    assert_exact(tiled_image, image)
    (blended_image,) = node("ExactVAEDecodeTiled").decode({"samples": whole}, small_vae, 64, 16, 64, 8, "blend")
    assert torch.equal(blended_image, small_vae.decode(whole, "blend", tile_size=64, overlap=16))
    assert not torch.equal(blended_image, tiled_image)


def test_tiles_are_the_strips_of_the_exact_run_and_the_overlap_changes_nothing(small_vae: VAE) -> None:
    z, x = torch.randn(1, 4, 20, 9), torch.rand(1, 160, 72, 3)
    plain = [node("ExactVAEDecodeTiled").decode({"samples": z}, small_vae, 64, overlap)[0] for overlap in (0, 64)]
    assert torch.equal(*plain)
    assert [level.strip_rows for level in small_vae.last_plan.schedule] == [8, 16, 32, 64]
    node("ExactVAEEncodeTiled").encode(x, small_vae, 96)
    assert [level.strip_rows for level in small_vae.last_plan.schedule] == [96, 48, 24, 12]


def test_an_unknown_method_is_refused_in_one_line(small_vae: VAE) -> None:
    with pytest.raises(InputError, match=r"^method: expected one of exact, untiled, blend, got 'fast'"):
        node("ExactVAEDecodeTiled").decode(SAMPLES, small_vae, method="fast")


def test_the_tiled_nodes_need_no_more_than_their_first_inputs(small_vae: VAE) -> None:
    (latent,) = node("ExactVAEEncodeTiled").encode(torch.rand(1, 32, 32, 3), small_vae)
    assert latent["samples"].shape == (1, 4, 4, 4)
    (image,) = node("ExactVAEDecodeTiled").decode(latent, small_vae)
    assert image.shape == (1, 32, 32, 3)


class HostVAE:
    """A VAE with the method signatures of ComfyUI's own; it records its arguments and computes nothing."""

    def __init__(self, factor: int = 8, frames: int = 0) -> None:
        self.factor, self.frames = factor, frames
        self.calls: list[dict[str, Any]] = []

    def decode(self, samples_in: Tensor, vae_options: Any = None) -> Tensor:
        self.calls.append({"samples": samples_in, "options": vae_options})
        return self._images()

    def encode(self, pixel_samples: Tensor) -> Tensor:
        self.calls.append({"pixels": pixel_samples})
        return torch.zeros(1, 16, 4, 4)

    def decode_tiled(
        self, samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ) -> Tensor:
        self.calls.append({"samples": samples, "tile_x": tile_x, "tile_y": tile_y, "overlap": overlap})
        self.times = (tile_t, overlap_t)
        return self._images()

    def encode_tiled(
        self, pixel_samples: Tensor, tile_x=None, tile_y=None, overlap=None, tile_t=None, overlap_t=None
    ) -> Tensor:
        self.calls.append({"pixels": pixel_samples, "tile_x": tile_x, "tile_y": tile_y, "overlap": overlap})
        self.times = (tile_t, overlap_t)
        return torch.zeros(1, 16, 4, 4)

    def spacial_compression_decode(self) -> int:
        return self.factor

    def spacial_compression_encode(self) -> int:
        return self.factor

    def temporal_compression_decode(self) -> int | None:
        return 4 if self.frames else None

    def _images(self) -> Tensor:
        shape = (2, self.frames, 8, 8, 3) if self.frames else (2, 8, 8, 3)
        return torch.arange(torch.Size(shape).numel()).float().reshape(shape)


@pytest.mark.parametrize(
    ("size", "overlap", "expected"), [(64, 8, (16, 2)), (8, 4, (2, 1)), (16, 64, (4, 2)), (8, 8, (2, 1))]
)
def test_frames_reach_a_host_s_video_vae_in_latent_frames(size: int, overlap: int, expected: tuple[int, int]) -> None:
    """decode_tiled counts latent frames (four to one), at least two and one shared; encode_tiled counts frames."""
    host = HostVAE(frames=3)
    node("ExactVAEDecodeTiled").decode(SAMPLES, host, 512, 64, size, overlap)
    assert host.times == expected
    node("ExactVAEEncodeTiled").encode(PIXELS, host, 512, 64, size, overlap)
    assert host.times == (size, overlap)
    image_host = HostVAE()
    node("ExactVAEDecodeTiled").decode(SAMPLES, image_host, 512, 64, size, overlap)
    assert image_host.times == (None, None)


SAMPLES = {"samples": torch.zeros(1, 4, 2, 2)}
PIXELS = torch.zeros(1, 16, 16, 4)


def test_a_host_vae_is_called_as_the_core_calls_it() -> None:
    host = HostVAE()
    node("ExactVAEDecode").decode(SAMPLES, host)
    node("ExactVAEEncode").encode(PIXELS, host)
    assert host.calls[0] == {"samples": SAMPLES["samples"], "options": None}
    assert host.calls[1]["pixels"].shape == (1, 16, 16, 3)


@pytest.mark.parametrize("method", ["exact", "blend"])
def test_a_host_vae_is_not_asked_for_methods_it_has_not(method: str) -> None:
    """Its methods take no such argument; it runs the tiles it knows."""
    host = HostVAE()
    node("ExactVAEDecodeTiled").decode(SAMPLES, host, 512, 64, 64, 8, method)
    node("ExactVAEEncodeTiled").encode(PIXELS, host, 512, 64, 64, 8, method)
    assert [call["tile_x"] for call in host.calls] == [64, 512]


@pytest.mark.parametrize("factor", [4, 8, 16, 32])
@pytest.mark.parametrize(
    ("tile", "overlap", "shared"), [(512, 64, 64), (256, 64, 64), (256, 96, 64), (64, 512, 16), (96, 0, 0)]
)
def test_tiles_reach_a_host_vae_in_its_own_units(factor: int, tile: int, overlap: int, shared: int) -> None:
    """decode_tiled counts latent cells, encode_tiled pixels; the overlap is at most a quarter of the tile."""
    host = HostVAE(factor)
    node("ExactVAEDecodeTiled").decode(SAMPLES, host, tile, overlap)
    node("ExactVAEEncodeTiled").encode(PIXELS, host, tile, overlap)
    decoding, encoding = ({key: call[key] for key in ("tile_x", "tile_y", "overlap")} for call in host.calls)
    assert decoding == {"tile_x": tile // factor, "tile_y": tile // factor, "overlap": shared // factor}
    assert encoding == {"tile_x": tile, "tile_y": tile, "overlap": shared}
    assert host.calls[1]["pixels"].shape == (1, 16, 16, 3)


class Nested:
    """A LATENT of several tensors, as newer hosts have it."""

    is_nested = True

    def __init__(self, *tensors: Tensor) -> None:
        self.tensors = tensors

    def unbind(self) -> tuple[Tensor, ...]:
        return self.tensors


@pytest.mark.parametrize("name", ["ExactVAEDecode", "ExactVAEDecodeTiled"])
def test_of_nested_latents_the_first_is_decoded(name: str) -> None:
    host, first = HostVAE(), torch.ones(1, 4, 2, 2)
    node(name).decode({"samples": Nested(first, torch.zeros(1, 8, 5))}, host)
    assert host.calls[0]["samples"] is first


@pytest.mark.parametrize("name", ["ExactVAEDecode", "ExactVAEDecodeTiled"])
def test_frames_of_a_video_become_a_batch_in_order(name: str) -> None:
    (images,) = node(name).decode(SAMPLES, HostVAE(frames=3))
    assert images.shape == (6, 8, 8, 3)
    assert torch.equal(images.flatten(), torch.arange(6 * 8 * 8 * 3).float())


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, small_file: str) -> SimpleNamespace:
    """ComfyUI's folder_paths with one file in models/vae."""
    module = SimpleNamespace(
        get_filename_list=lambda kind: {"vae": ["sub/small.safetensors"]}[kind],
        get_full_path_or_raise=lambda kind, name: {("vae", "sub/small.safetensors"): str(small_file)}[kind, name],
    )
    monkeypatch.setitem(sys.modules, "folder_paths", module)
    return module


@pytest.mark.usefixtures("folders")
def test_the_loader_lists_the_host_s_files_and_the_bundled_one() -> None:
    assert inputs_of("ExactVAELoader")["vae_name"][0] == ["sub/small.safetensors", "bundled"]


def test_the_loader_lists_the_bundled_one_without_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "folder_paths", raising=False)
    assert inputs_of("ExactVAELoader")["vae_name"][0] == ["bundled"]


@pytest.mark.usefixtures("folders")
def test_the_loader_loads_a_listed_file() -> None:
    (vae,) = node("ExactVAELoader").load_vae("sub/small.safetensors", "float32")
    assert isinstance(vae, VAE)
    assert vae.latent_channels == 4
    assert vae.vae_dtype == torch.float32
    (vae,) = node("ExactVAELoader").load_vae("sub/small.safetensors", "bfloat16")
    assert vae.vae_dtype == torch.bfloat16


@pytest.mark.usefixtures("folders")
def test_the_loader_loads_the_bundled_one(monkeypatch: pytest.MonkeyPatch, small_file: str) -> None:
    monkeypatch.setattr("exact_vae.model_management.loader.BUNDLED_FILE", small_file)
    (vae,) = node("ExactVAELoader").load_vae("bundled")
    assert vae.latent_channels == 4


@pytest.mark.usefixtures("folders")
@pytest.mark.parametrize("name", ["../../x", "/etc/passwd", "small.safetensors", "sub/../sub/small.safetensors", ""])
def test_the_loader_refuses_what_is_not_listed(name: str) -> None:
    with pytest.raises(InputError) as caught:
        node("ExactVAELoader").load_vae(name)
    assert str(caught.value) == (f"vae_name: expected one of 2 listed VAEs, got {name!r}: put the file into models/vae")
