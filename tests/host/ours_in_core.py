"""A VAE of ours and one made exact beside the core's own: names, packs' calls, patched clones. See `in_core.py`."""

# ruff: noqa: I001
import copy
import hashlib
import json
from types import SimpleNamespace

from in_core import exact_vae, fill, small_kl  # first of all: it makes this process the host

import comfy.model_management
import torch

Z = torch.randn(1, 4, 5, 7, generator=torch.Generator().manual_seed(1))
PIXELS = torch.rand(2, 45, 62, 3, generator=torch.Generator().manual_seed(2))
CALLS = {
    "decode, an argument": lambda vae: vae.decode(Z),
    "decode, options": lambda vae: vae.decode(Z, {}),
    "decode, named options": lambda vae: vae.decode(samples_in=Z, vae_options={}),
    "decode_tiled": lambda vae: vae.decode_tiled(Z, tile_x=64, tile_y=64, overlap=16, tile_t=None, overlap_t=None),
    "decode_tiled_": lambda vae: vae.decode_tiled_(Z, 64, 64, 16),
    "encode": lambda vae: vae.encode(pixel_samples=PIXELS),
    "encode, cropped before": lambda vae: vae.encode(vae.vae_encode_crop_pixels(PIXELS)),
    "encode_tiled": lambda vae: vae.encode_tiled(PIXELS, tile_x=512, tile_y=512, overlap=64),
    "encode_tiled_": lambda vae: vae.encode_tiled_(vae.vae_encode_crop_pixels(PIXELS).movedim(-1, 1), 512, 512, 64),
    "vae_encode_crop_pixels": lambda vae: vae.vae_encode_crop_pixels(torch.cat([PIXELS, PIXELS], dim=-1)[..., :3]),
    "process_output": lambda vae: vae.process_output(vae.first_stage_model.decode(Z)),
}
"""What packs call. Tiles cover the whole here, so that the core's own are exact, too."""
ANSWERS = {
    "factors": lambda vae: [vae.spacial_compression_decode(), vae.spacial_compression_encode()],
    "temporal_compression_decode": lambda vae: vae.temporal_compression_decode(),
    "model_size": lambda vae: vae.model_size(),
    "get_ram_usage": lambda vae: vae.get_ram_usage(),
    "prepare_decode": lambda vae: vae.prepare_decode(Z.shape, 2**50),
    "vae_output_dtype": lambda vae: str(vae.vae_output_dtype()),
    "is_dynamic": lambda vae: vae.is_dynamic(),
    "plain": lambda vae: [
        *(vae.latent_channels, vae.latent_dim, vae.output_channels, vae.not_video, vae.crop_input),
        *(vae.downscale_ratio, vae.upscale_ratio, vae.extra_1d_channel, str(vae.vae_dtype), str(vae.output_device)),
        *(vae.downscale_index_formula, vae.upscale_index_formula, [str(dtype) for dtype in vae.working_dtypes]),
        *(getattr(vae, "pad_channel_value", None), getattr(vae, "handles_tiling", False)),
        *(getattr(vae, "format_encoded", None), getattr(vae, "audio_sample_rate", 44100)),
    ],
    "state dict": lambda vae: hashlib.sha1(" ".join(sorted(vae.get_sd())).encode()).hexdigest(),
}


def off(found, expected):
    """The difference, as a share of the range."""
    if found.shape != expected.shape or found.dtype != expected.dtype or found.device != expected.device:
        return f"{tuple(found.shape)} {found.dtype} for {tuple(expected.shape)} {expected.dtype}"
    return float((found - expected).abs().max() / (expected.max() - expected.min()))


def replayed(vaes):
    """{call: {whose VAE: how far from the core's, or what went wrong}}."""
    told = {}
    for name, call in CALLS.items():
        expected, told[name] = call(vaes["core"]), {}
        for whose in ("exact", "ours"):
            try:
                told[name][whose] = off(call(vaes[whose]), expected)
            except Exception as error:
                told[name][whose] = f"{type(error).__name__}: {error}"
    return told


def asked(vaes):
    """{question: {whose VAE: answer}}; nothing of what this version of the core does not answer."""
    told = {}
    for name, ask in ANSWERS.items():
        try:
            told[name] = {"core": ask(vaes["core"])}
        except AttributeError:
            continue
        for whose in ("exact", "ours"):
            try:
                told[name][whose] = ask(vaes[whose])
            except Exception as error:
                told[name][whose] = f"{type(error).__name__}: {error}"
    return told


def supir(vae, weights):
    """What the core's SUPIR node does with a VAE; by the node where there is one."""
    try:
        from comfy_extras.nodes_model_patch import SUPIRApply
    except ImportError:
        own = vae.patcher
        vae.patcher = own.clone()
        patches = {f"encoder.{name}": (weight,) for name, weight in weights.items()}
        vae.patcher.add_patches(patches, strength_patch=1.0, strength_model=0.0)
        try:
            return vae.encode(PIXELS)
        finally:
            vae.patcher = own
    patch = SimpleNamespace(model=SimpleNamespace(denoise_encoder_sd=weights))
    return SUPIRApply._encode_with_denoise_encoder(vae, patch, PIXELS)


def moved(vae):
    """What the core's Select VAE Device makes of a VAE; by the node where there is one."""
    try:
        from comfy_extras.nodes_multigpu import SelectVAEDeviceNode
    except ImportError:
        other = copy.copy(vae)
        other.patcher = other.patcher.clone()
        other.first_stage_model = other.patcher.model
        return other
    return SelectVAEDeviceNode.execute(vae, "default").result[0]


def patched(vaes):
    """{whose VAE: differences after the nodes that put another patcher into it}."""
    encoder = copy.deepcopy(vaes["core"].first_stage_model.encoder)
    fill(encoder, seed=1)
    weights = encoder.state_dict()
    plain, changed, told = vaes["core"].encode(PIXELS), supir(vaes["core"], weights), {}
    image = vaes["core"].decode(Z)
    for whose in ("exact", "ours"):
        vae = vaes[whose]
        told[whose] = {"supir": off(supir(vae, weights), changed), "again": off(vae.encode(PIXELS), plain)}
        other = moved(vae)
        told[whose]["moved"] = off(other.decode(Z), image)
        loaded = comfy.model_management.current_loaded_models[0].model
        told[whose]["by its own patcher"] = other.patcher is not vae.patcher and loaded is other.patcher
        told[whose]["exact"] = bool(vae.last_report.exact and other.last_report.exact)
    told["changed"] = off(changed, plain)
    return told


def main():
    """All of it."""
    with torch.inference_mode():
        core = small_kl()
        ours = exact_vae.load_vae(dict(core.get_sd()), dtype="float32")
        vaes = {"core": core, "ours": ours, "exact": exact_vae.NODE_CLASS_MAPPINGS["ExactVAEApply"]().apply(core)[0]}
        missing = [name for name in dir(core) if not name.startswith("_") and not hasattr(ours, name)]
        told = {"missing": missing, "calls": replayed(vaes), "answers": asked(vaes), "patched": patched(vaes)}
    print("\n" + json.dumps(told))


if __name__ == "__main__":
    main()
