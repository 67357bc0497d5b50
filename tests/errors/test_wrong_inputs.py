"""Nothing, or something else, where a VAE, a latent, an image, a mask or a file belongs: one line that helps."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from exact_vae import NODE_CLASS_MAPPINGS, VAE, InputError, UnexpectedError, load_vae
from exact_vae.model_management.vae_plan import plan_text
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.vae_model.bundled import BUNDLED_FILE
from exact_vae.vae_model.checkpoint.load import load_model
from exact_vae.vae_model.checkpoint.save import save
from exact_vae.vae_model.errors import VAEFileError
from exact_vae.vae_model.files.images import read_image, write_image
from exact_vae.vae_model.files.latents import read_latent, write_latent
from safetensors.torch import save_file

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = ["exact", "untiled", "blend"]
LINE = r"^[^\n]*: expected [^\n]*, got [^\n]*: [^\n]*$"
PIXELS, MASK = torch.rand(1, 32, 24, 3), torch.zeros(1, 32, 24)


def node(name: str, **inputs: Any) -> Any:
    kind: Any = NODE_CLASS_MAPPINGS[f"ExactVAE{name}"]
    return getattr(kind(), kind.FUNCTION)(**inputs)


def refused(call: Callable[[], object], kind: type[Exception] = InputError) -> str:
    """The one line that `call` ends in."""
    with pytest.raises(kind, match=LINE) as caught:
        call()
    return str(caught.value)


# -- nodes: nothing, or something else, at each input ------------------------------------------------------------------

DECODERS, ENCODERS = ["Decode", "DecodeTiled"], ["Encode", "EncodeTiled", "EncodeForInpaint"]


def decode_inputs(vae: Any, **changed: Any) -> dict[str, Any]:
    return {"samples": {"samples": torch.randn(1, 4, 4, 3)}, "vae": vae} | changed


def encode_inputs(name: str, vae: Any, **changed: Any) -> dict[str, Any]:
    mask = {"mask": MASK} if name == "EncodeForInpaint" else {}
    return {"pixels": PIXELS, "vae": vae} | mask | changed


@pytest.mark.parametrize("vae", [None, "vae.safetensors", 5])
def test_no_vae_into_any_node(vae: Any) -> None:
    calls = [lambda name=name: node(name, **decode_inputs(vae)) for name in DECODERS]
    calls += [lambda name=name: node(name, **encode_inputs(name, vae)) for name in ENCODERS]
    calls += [lambda: node("Apply", vae=vae), lambda: node("Plan", vae=vae, width=64, height=64)]
    found = "nothing" if vae is None else type(vae).__name__
    for call in calls:
        line = refused(call)
        assert line.startswith(f"vae: expected a VAE, got {found}: ")
        assert line.endswith("connect a VAE loader")


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("samples", [None, {}, {"samples": None}, {"samples": [1]}, torch.zeros(1, 4, 4, 3)])
def test_no_latent_into_a_decoder(small_vae: VAE, name: str, samples: Any) -> None:
    assert refused(lambda: node(name, **decode_inputs(small_vae, samples=samples))).startswith("samples: expected a l")


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("pixels", [None, [1], PIXELS[0], (PIXELS * 255).to(torch.uint8), PIXELS[..., :1]])
def test_no_image_into_an_encoder(small_vae: VAE, name: str, pixels: Any) -> None:
    assert refused(lambda: node(name, **encode_inputs(name, small_vae, pixels=pixels))).startswith("pixels: expected ")


@pytest.mark.parametrize("mask", [None, 3, torch.zeros(32), torch.zeros(0, 32, 24)])
def test_no_mask_into_inpainting(small_vae: VAE, mask: Any) -> None:
    line = refused(lambda: node("EncodeForInpaint", **encode_inputs("EncodeForInpaint", small_vae, mask=mask)))
    assert line.startswith("mask: expected (batch, height, width), got ")


@pytest.mark.parametrize("name", DECODERS)
def test_latents_of_other_channels(small_vae: VAE, stub_host: Any, name: str) -> None:
    """A VAE of ours, and one of the host's, where the network says it."""
    wrong = {"samples": torch.randn(1, 16, 4, 4)}
    for vae, told in (
        (small_vae, "expected 4 channels for this VAE, got 16: use the VAE that belongs to the model"),
        (stub_host.make_vae(), "expected (B, 4, H, W), got (1, 16, 4, 4): use the network that belongs to it"),
    ):
        assert told in refused(lambda vae=vae: node(name, samples=wrong, vae=vae))


def test_eight_bit_numbers_are_taken_exactly(small_vae: VAE, stub_host: Any) -> None:
    z, x = torch.randn(1, 4, 4, 4).to(torch.float8_e4m3fn), PIXELS.to(torch.float8_e5m2)
    for method in METHODS:
        assert small_vae.decode(z, method).equal(small_vae.decode(z.float(), method))
        assert small_vae.encode(x, method).equal(small_vae.encode(x.float(), method))
    for vae in (small_vae, stub_host.make_vae()):
        for name in DECODERS:
            given = [node(name, samples={"samples": latent}, vae=vae)["result"][0] for latent in (z, z.float())]
            assert given[0].equal(given[1])
        for name in ENCODERS:
            given = [node(name, **encode_inputs(name, vae, pixels=image)) for image in (x, x.float())]
            assert given[0]["result"][0]["samples"].equal(given[1]["result"][0]["samples"])


def test_a_host_s_own_errors_pass_as_they_are(stub_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption, and memory that ran out: the host acts on them."""
    vae = stub_host.make_vae("video")
    for error in (stub_host.interrupt(), torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("broken\nin two")):

        def fail(*_: Any, error: BaseException = error, **__: Any) -> Any:
            raise error

        monkeypatch.setattr(type(vae), "decode", fail)
        with pytest.raises(BaseException) as caught:  # noqa: PT011
            node("Decode", **decode_inputs(vae))
        assert (caught.value is error) == (type(error) is not RuntimeError)
    assert caught.type is UnexpectedError
    assert "got RuntimeError: broken in two: " in str(caught.value)
    assert caught.value.__cause__ is error


# -- the library -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_tensor_or_none_that_can_be_computed(small_vae: VAE, method: str) -> None:
    z = torch.randn(1, 4, 4, 4)
    for wrong in (None, [1], z.to(torch.complex64), z.to("meta"), z.to_sparse()):
        assert refused(lambda wrong=wrong: small_vae.decode(wrong, method)).startswith("latents: expected ")
        assert refused(lambda wrong=wrong: small_vae.encode(wrong, method)).startswith("pixels: expected ")


def test_foreign_errors_of_a_run_have_their_cause(small_vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("shape '[2]' is invalid for\n  input of size 3")

    monkeypatch.setattr(small_vae, "_decode_raw", broken)
    with pytest.raises(
        UnexpectedError, match=r"^decode: expected no error, got RuntimeError: shape '\[2\]' is"
    ) as caught:
        small_vae.decode(torch.randn(1, 4, 4, 4), "untiled")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_wrong_arguments_stay_pythons_own_error(small_vae: VAE) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sampels'") as caught:
        small_vae.decode(sampels=None)  # type: ignore[call-arg]
    assert caught.type is TypeError
    with pytest.raises(TypeError, match="unexpected keyword argument 'dtpye'"):
        load_vae(dtpye="float32")  # type: ignore[call-arg]


@pytest.mark.parametrize("name", ["SD1, SD2, SDXL", "Flux.2", "VQ-f4", "Wan 2.1, Qwen-Image", "TAESD, TAESDXL"])
@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_half_a_model_says_which_half_is_missing(name: str, half: str) -> None:
    row = ROWS[name]
    model = random_model(row)
    other = {"encoder": "decoder", "decoder": "encoder"}[half]
    whole = load_model(dict(model.state_dict()), dtype=torch.float32, config=hints(row.config))
    vae: Any = load_vae(dict(model.state_dict()), device="cpu", dtype="float32", config=hints(row.config))
    delattr(vae.first_stage_model, other)
    assert hasattr(whole.model, other)
    z, x = torch.randn(1, row.channels, 2, 2), torch.rand(1, 2 * row.factor, row.factor, 3)
    what, given = ("decode", z) if other == "decoder" else ("encode", x)
    expected = f"{what}: expected a VAE with its {other}, got the {half} alone: load both files, or a whole VAE"
    for method in METHODS:
        assert refused(lambda method=method: getattr(vae, what)(given, method)) == expected
    assert plan_text(vae, what, 64, 64, None) == expected


def test_two_images_into_a_vae_of_videos() -> None:
    """As in ComfyUI they are a video, whose second frame belongs to no latent: that is said; the way out is a flag."""
    row = ROWS["Wan 2.1, Qwen-Image"]
    vae = load_vae(dict(random_model(row).state_dict()), device="cpu", dtype="float32")
    vae.not_video = False  # as in ComfyUI
    images = torch.rand(2, 16, 16, 3)
    torch.testing.assert_close(vae.encode(images), vae.encode(images[:1]), rtol=0, atol=1e-5)
    each = torch.cat([vae.encode(image[None]) for image in images])
    vae.not_video = True
    torch.testing.assert_close(vae.encode(images), each, rtol=0, atol=1e-5)  # float32, other strips
    wrong = refused(lambda: vae.decode(torch.zeros(1, 15, 2, 2, 2)))
    assert wrong.startswith("latents: expected (batch, 16, frames, height, width), got (1, 15, 2, 2, 2): ")


@pytest.mark.parametrize("source", [None, 5, [], (None,), torch.zeros(2), b"file", "", ["a", 3]])
def test_what_is_no_source_of_a_vae(source: Any) -> None:
    assert refused(lambda: load_vae(source)).startswith("load_vae: expected a file, a folder, a state dict or a pair")


def test_a_folder_where_a_file_is_meant(tmp_path: Path) -> None:
    picture, latent = tmp_path / "a.png", tmp_path / "a.safetensors"
    picture.mkdir()
    latent.mkdir()
    for call in (
        lambda: read_image(picture),
        lambda: read_latent(latent),
        lambda: write_image(torch.zeros(2, 2, 3), picture),
        lambda: write_latent(torch.zeros(1, 4, 2, 2), latent),
        lambda: save(load_model(BUNDLED_FILE).model, latent),
    ):
        assert "got the folder " in refused(call, ValueError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.safetensors"]  # nothing beside them


AUDIO = {
    "Stable Audio": ["encoder.layers.0.weight_g", "decoder.layers.1.layers.0.beta"],
    "Stable Audio 3": ["decoder.layers.3.transformers.0.pre_norm.alpha"],
    "ACE-Step": ["vocoder.backbone.channel_layers.0.0.bias", "dcae.decoder.conv_in.conv.weight"],
    "MMAudio": ["vocoder.activation_post.downsample.lowpass.filter"],
    "LTX": ["vocoder.resblocks.0.convs1.0.weight", "audio_vae.decoder.conv_in.conv.weight"],
    "MiniMax H3": ["pre_block.attn.zero_k_bias"],
    "MiniMax Music": ["dec_in_proj.weight", "decoder.model.0.weight_g"],
}


@pytest.mark.parametrize("name", AUDIO)
def test_audio_vaes_are_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / "audio.safetensors"
    save_file({key: torch.zeros(2) for key in AUDIO[name]}, path)
    with pytest.raises(VAEFileError, match=rf"found the audio VAE of {name}(;|:)"):
        load_vae(path)


def test_channels_first_are_told_as_such(small_vae: VAE) -> None:
    with pytest.raises(InputError, match=r"expected channels last, .* got \(1, 3, 64, 64\): movedim\(1, -1\)$"):
        small_vae.encode(torch.rand(1, 3, 64, 64))


def test_xformers_is_asked_for_by_name() -> None:
    from exact_vae.vae_model.attention.backends import xformers_attention

    if importlib.util.find_spec("xformers") is not None:
        pytest.skip("xformers is installed here")
    with pytest.raises(ImportError, match="expected the package xformers, found none: install it or take"):
        xformers_attention(*torch.rand(3, 1, 4, 8))
