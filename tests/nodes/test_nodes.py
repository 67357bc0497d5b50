"""The nodes: their public inputs, word for word, and that they work on our VAE and on any VAE of the host."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS, VAE
from exact_vae.tests.exactness import assert_exact
from exact_vae.vae_model.errors import InputError

TILES = {"tile_size": (512, 64, 4096, 32), "overlap": (64, 0, 4096, 32)}
ENCODER_TILES = TILES | {"tile_size": (512, 64, 4096, 64)}
FRAMES = {"temporal_size": (64, 8, 4096, 4), "temporal_overlap": (8, 4, 4096, 4)}


def inputs_of(name: str) -> dict[str, Any]:
    inputs = NODE_CLASS_MAPPINGS[name].INPUT_TYPES()
    return {**inputs.get("required", {}), **inputs.get("optional", {})}


@pytest.mark.parametrize(
    ("name", "required", "optional", "types"),
    [
        ("ExactVAELoader", ["vae_name"], ["dtype", "part"], None),
        ("ExactVAEEncode", ["pixels", "vae"], ["memory"], ["IMAGE", "VAE"]),
        ("ExactVAEDecode", ["samples", "vae"], ["memory"], ["LATENT", "VAE"]),
        (
            "ExactVAEEncodeForInpaint",
            ["pixels", "vae", "mask", "grow_mask_by"],
            ["memory"],
            ["IMAGE", "VAE", "MASK", "INT"],
        ),
        ("ExactVAEApply", ["vae"], ["memory"], ["VAE"]),
        ("ExactVAEPlan", ["vae", "width", "height"], ["direction", "memory", "frames"], ["VAE", "INT", "INT"]),
        (
            "ExactVAEEncodeTiled",
            ["pixels", "vae", "tile_size", "overlap", "temporal_size", "temporal_overlap"],
            ["method", "memory"],
            ["IMAGE", "VAE", "INT", "INT", "INT", "INT"],
        ),
        (
            "ExactVAEDecodeTiled",
            ["samples", "vae", "tile_size", "overlap", "temporal_size", "temporal_overlap"],
            ["method", "memory"],
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
    for name, tiles in (("ExactVAEEncodeTiled", ENCODER_TILES), ("ExactVAEDecodeTiled", TILES)):
        for key, numbers in (tiles | FRAMES).items():
            options = inputs_of(name)[key][1]
            assert tuple(options[field] for field in ("default", "min", "max", "step")) == numbers
        methods, options = inputs_of(name)["method"]
        assert (methods, options["default"]) == (["exact", "blend"], "exact")
    dtypes, options = inputs_of("ExactVAELoader")["dtype"]
    assert dtypes == ["auto", "float32", "bfloat16", "float16"]
    assert options["default"] == "auto"
    kind, options = inputs_of("ExactVAELoader")["part"]
    assert (kind, options["default"], options["advanced"]) == ("STRING", "", True)


@pytest.mark.parametrize(
    ("name", "function", "returns", "category"),
    [
        ("ExactVAELoader", "load_vae", ("VAE",), "model/loaders/ExactVAE"),
        ("ExactVAEEncode", "encode", ("LATENT",), "model/latent/ExactVAE"),
        ("ExactVAEDecode", "decode", ("IMAGE",), "model/latent/ExactVAE"),
        ("ExactVAEEncodeTiled", "encode", ("LATENT",), "model/latent/ExactVAE"),
        ("ExactVAEDecodeTiled", "decode", ("IMAGE",), "model/latent/ExactVAE"),
        ("ExactVAEEncodeForInpaint", "encode", ("LATENT",), "model/latent/ExactVAE"),
        ("ExactVAEApply", "apply", ("VAE",), "model/latent/ExactVAE"),
        ("ExactVAEPlan", "plan", ("STRING",), "model/latent/ExactVAE"),
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


@pytest.mark.parametrize("name", NODE_CLASS_MAPPINGS)
def test_what_does_nothing_for_pictures_is_among_the_advanced_inputs(name: str) -> None:
    """As in the core's nodes since advanced inputs exist; what a picture needs stays in sight."""
    advanced = [key for key, spec in inputs_of(name).items() if len(spec) > 1 and spec[1].get("advanced")]
    expected = ["overlap", "temporal_size", "temporal_overlap"] if "Tiled" in name else []
    expected += ["part"] if name == "ExactVAELoader" else []
    assert advanced == expected


@pytest.mark.parametrize("name", ["ExactVAEEncodeTiled", "ExactVAEDecodeTiled"])
def test_what_approximates_says_so_before_anybody_runs_it(name: str) -> None:
    description = NODE_CLASS_MAPPINGS[name].DESCRIPTION
    assert "Method blend is approximate" in description
    assert "So is a VAE of an unknown structure; the node then says why." in description
    tooltip = inputs_of(name)["method"][1]["tooltip"]
    assert "blend: overlapping tiles, approximate" in tooltip
    assert "unused" in inputs_of(name)["overlap"][1]["tooltip"]


def node(name: str) -> Any:
    return NODE_CLASS_MAPPINGS[name]()


def result(output: dict[str, Any]) -> Any:
    """What a node hands on; a run by us comes with a report for the page."""
    (value,) = output["result"]
    (report,) = output["ui"]["exact_vae"]
    assert report["line"].startswith("exact · resident" if report["exact"] else "approximate · ")
    return value


def test_positional_calls_without_a_host(small_vae: VAE) -> None:
    pixels = torch.rand(1, 24, 90, 4)
    latent = result(node("ExactVAEEncode").encode(pixels, small_vae))
    assert list(latent) == ["samples"]
    assert torch.equal(latent["samples"], small_vae.encode(pixels[..., :3]))
    image = result(node("ExactVAEDecode").decode(latent, small_vae))
    assert torch.equal(image, small_vae.decode(latent["samples"]))
    assert image.shape == (1, 24, 88, 3)


def test_the_tiled_nodes_are_exact_and_blend_only_where_asked(small_vae: VAE) -> None:
    pixels = torch.rand(1, 72, 90, 4)
    whole = small_vae.encode(pixels, "untiled")
    tiled = result(node("ExactVAEEncodeTiled").encode(pixels, small_vae, 64, 16, 64, 8))
    assert_exact(tiled["samples"], whole)
    blended = result(node("ExactVAEEncodeTiled").encode(pixels, small_vae, 64, 16, 64, 8, "blend"))
    assert torch.equal(blended["samples"], small_vae.encode(pixels, "blend", tile_size=64, overlap=16))
    assert not torch.equal(blended["samples"], tiled["samples"])

    image = small_vae.decode(whole, "untiled")
    tiled_image = result(node("ExactVAEDecodeTiled").decode({"samples": whole}, small_vae, 64, 16, 64, 8))
    assert_exact(tiled_image, image)
    blended_image = result(node("ExactVAEDecodeTiled").decode({"samples": whole}, small_vae, 64, 16, 64, 8, "blend"))
    assert torch.equal(blended_image, small_vae.decode(whole, "blend", tile_size=64, overlap=16))
    assert not torch.equal(blended_image, tiled_image)


def test_tiles_are_the_strips_of_the_exact_run_and_the_overlap_changes_nothing(small_vae: VAE) -> None:
    z, x = torch.randn(1, 4, 20, 9), torch.rand(1, 160, 72, 3)
    plain = [result(node("ExactVAEDecodeTiled").decode({"samples": z}, small_vae, 64, overlap)) for overlap in (0, 64)]
    assert torch.equal(*plain)
    assert [level.strip_rows for level in small_vae.last_plan.schedule] == [8, 16, 32, 64]
    node("ExactVAEEncodeTiled").encode(x, small_vae, 96)
    assert [level.strip_rows for level in small_vae.last_plan.schedule] == [96, 48, 24, 12]


def test_an_unknown_method_is_refused_in_one_line(small_vae: VAE) -> None:
    with pytest.raises(InputError, match=r"^method: expected one of exact, untiled, blend, got 'fast'"):
        node("ExactVAEDecodeTiled").decode({"samples": torch.zeros(1, 4, 2, 2)}, small_vae, method="fast")


def test_the_tiled_nodes_need_no_more_than_their_first_inputs(small_vae: VAE) -> None:
    latent = result(node("ExactVAEEncodeTiled").encode(torch.rand(1, 32, 32, 3), small_vae))
    assert latent["samples"].shape == (1, 4, 4, 4)
    image = result(node("ExactVAEDecodeTiled").decode(latent, small_vae))
    assert image.shape == (1, 32, 32, 3)


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch, small_file: str) -> SimpleNamespace:
    """ComfyUI's folder_paths with one file in models/vae."""
    module = SimpleNamespace(
        get_filename_list=lambda kind: {"vae": ["sub/small.safetensors"], "vae_approx": []}[kind],
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
