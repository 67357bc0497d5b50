"""Key layouts as data: how each kind of file names the tensors that our modules hold, invertibly.

A rule pairs a file's key template with ours. Placeholders: {c} encoder or decoder, {i} a level, {i~} the same level
counted from the other end, {j} or {k} a number, {k+1} one more, {m} a layer name, {p} weight or bias, {rest} anything;
{i:j} is number j of level i, {i:last} the last number of level i, where numbers run on from level to level.
Our own names are ldm's for KL autoencoders, diffusers' for tiny ones and the original's for Wan.
Source of the names: latent-diffusion (MIT), diffusers (Apache-2.0), madebyollin/taesd (MIT), read as facts.
"""

from __future__ import annotations

from dataclasses import dataclass

from .spellings import attention_spellings
from .video.names import VIDEO_DIFFUSERS_BLOCKS, VIDEO_DIFFUSERS_MARK, VIDEO_DIFFUSERS_RULES, VIDEO_MARKS, VIDEO_RULES
from .wan.names import WAN_DIFFUSERS_MARKS, WAN_DIFFUSERS_RULES, WAN_MARKS, WAN_RULES

Rule = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of a family."""

    name: str
    family: str
    """Row of `detect.FAMILIES` that the translated keys belong to."""
    marks: tuple[str, ...]
    """A file has this layout when it holds at least one of these keys ..."""
    forbidden: tuple[str, ...]
    """... and none of these."""
    rules: tuple[Rule, ...]
    """(file's template, our template), the first match counts."""
    required: tuple[str, ...] = ()
    """Keys that must all be there, too."""
    spellings: tuple[Rule, ...] = ()
    """Other names of the same tensors: tried first when a file is read, never written."""
    linear_attention: bool = False
    """Attention weights are (C, C) matrices in the file, 1x1 convolutions (C, C, 1, 1) in our modules."""


_KL_OWN: tuple[Rule, ...] = tuple(
    (template, template)
    for template in (
        "{c}.conv_in.{p}",
        "{c}.conv_out.{p}",
        "{c}.norm_out.{p}",
        "encoder.down.{i}.block.{j}.{m}.{p}",
        "encoder.down.{i}.attn.{j}.{m}.{p}",
        "encoder.down.{i}.downsample.conv.{p}",
        "decoder.up.{i}.block.{j}.{m}.{p}",
        "decoder.up.{i}.attn.{j}.{m}.{p}",
        "decoder.up.{i}.upsample.conv.{p}",
        "{c}.mid.block_{j}.{m}.{p}",
        "{c}.mid.attn_1.{m}.{p}",
        "quant_conv.{p}",
        "post_quant_conv.{p}",
    )
)


_OWN_SPELLINGS = attention_spellings(
    (place, place) for place in ("encoder.down.{i}.attn.{j}", "decoder.up.{i}.attn.{j}", "{c}.mid.attn_1")
)
_DIFFUSERS_ATTENTIONS: tuple[Rule, ...] = (
    ("encoder.down_blocks.{i}.attentions.{j}", "encoder.down.{i}.attn.{j}"),
    ("decoder.up_blocks.{i~}.attentions.{j}", "decoder.up.{i}.attn.{j}"),
    ("{c}.mid_block.attentions.0", "{c}.mid.attn_1"),
)
_DIFFUSERS_SPELLINGS = attention_spellings(_DIFFUSERS_ATTENTIONS)
_DIFFUSERS_BLOCKS: tuple[Rule, ...] = (
    ("encoder.down_blocks.{i}.resnets.{j}", "encoder.down.{i}.block.{j}"),
    ("decoder.up_blocks.{i~}.resnets.{j}", "decoder.up.{i}.block.{j}"),
    ("{c}.mid_block.resnets.0", "{c}.mid.block_1"),
    ("{c}.mid_block.resnets.1", "{c}.mid.block_2"),
)


def _diffusers_kl(attention_names: dict[str, str], blocks: tuple[Rule, ...] = _DIFFUSERS_BLOCKS) -> tuple[Rule, ...]:
    """Rules of diffusers' AutoencoderKL; the names inside attention changed over time."""
    rules: list[Rule] = [
        ("{c}.conv_in.{p}", "{c}.conv_in.{p}"),
        ("{c}.conv_out.{p}", "{c}.conv_out.{p}"),
        ("{c}.conv_norm_out.{p}", "{c}.norm_out.{p}"),
        ("quant_conv.{p}", "quant_conv.{p}"),
        ("post_quant_conv.{p}", "post_quant_conv.{p}"),
        ("encoder.down_blocks.{i}.downsamplers.0.conv.{p}", "encoder.down.{i}.downsample.conv.{p}"),
        ("decoder.up_blocks.{i~}.upsamplers.0.conv.{p}", "decoder.up.{i}.upsample.conv.{p}"),
    ]
    for theirs, ours in blocks:
        rules.append((f"{theirs}.conv_shortcut.{{p}}", f"{ours}.nin_shortcut.{{p}}"))
        rules += [(f"{theirs}.{name}.{{p}}", f"{ours}.{name}.{{p}}") for name in ("norm1", "conv1", "norm2", "conv2")]
    for theirs, ours in _DIFFUSERS_ATTENTIONS:
        rules += [(f"{theirs}.{name}.{{p}}", f"{ours}.{own}.{{p}}") for name, own in attention_names.items()]
    return tuple(rules)


_BATCH_NORM = ("bn.running_mean", "bn.running_var", "bn.num_batches_tracked")
_FLUX2_RULES: tuple[Rule, ...] = tuple((key, key) for key in _BATCH_NORM)
_NESTED_QUANT: tuple[Rule, ...] = (
    ("encoder.quant_conv.{p}", "quant_conv.{p}"),
    ("decoder.post_quant_conv.{p}", "post_quant_conv.{p}"),
)
_CODEBOOK = "quantize.embedding.weight"
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OLD_ATTENTION = {"group_norm": "norm", "query": "q", "key": "k", "value": "v", "proj_attn": "proj_out"}
_LDM_MARKS = ("decoder.mid.block_1.norm1.weight", "encoder.mid.block_1.norm1.weight")
_RELATIVES = ("bn.running_mean", _CODEBOOK)
"""Keys of families that have all of a KL autoencoder's keys."""
_DIFFUSERS_MARKS = ("decoder.mid_block.resnets.0.norm1.weight", "encoder.mid_block.resnets.0.norm1.weight")
_OLD_ATTENTION_MARKS = tuple(f"{half}.mid_block.attentions.0.query.weight" for half in ("decoder", "encoder"))

LAYOUTS: tuple[Layout, ...] = (
    Layout(
        name="ldm",
        family="kl",
        marks=_LDM_MARKS,
        forbidden=(*VIDEO_MARKS, *_RELATIVES),
        rules=_KL_OWN,
        spellings=_OWN_SPELLINGS,
    ),
    Layout(
        name="diffusers",
        family="kl",
        marks=_DIFFUSERS_MARKS,
        forbidden=(*_OLD_ATTENTION_MARKS, VIDEO_DIFFUSERS_MARK, *_RELATIVES),
        rules=_diffusers_kl(_ATTENTION),
        spellings=_DIFFUSERS_SPELLINGS,
        linear_attention=True,
    ),
    Layout(
        name="diffusers-old",
        family="kl",
        marks=_OLD_ATTENTION_MARKS,
        forbidden=(VIDEO_DIFFUSERS_MARK, *_RELATIVES),
        rules=_diffusers_kl(_OLD_ATTENTION),
        spellings=_DIFFUSERS_SPELLINGS,
        linear_attention=True,
    ),
    Layout(
        name="ldm",
        family="video",
        marks=VIDEO_MARKS,
        forbidden=(),
        rules=(*VIDEO_RULES, *_KL_OWN),
        spellings=_OWN_SPELLINGS,
    ),
    Layout(
        name="diffusers",
        family="video",
        marks=(VIDEO_DIFFUSERS_MARK,),
        forbidden=(),
        rules=(*VIDEO_DIFFUSERS_RULES, *_diffusers_kl(_ATTENTION, VIDEO_DIFFUSERS_BLOCKS)),
        spellings=_DIFFUSERS_SPELLINGS,
        linear_attention=True,
    ),
    Layout(
        name="ldm",
        family="flux2",
        marks=_LDM_MARKS,
        forbidden=(),
        rules=(*_NESTED_QUANT, *_KL_OWN, *_FLUX2_RULES),
        spellings=_OWN_SPELLINGS,
        required=("bn.running_mean",),
    ),
    Layout(
        name="diffusers",
        family="flux2",
        marks=_DIFFUSERS_MARKS,
        forbidden=(),
        rules=(*_diffusers_kl(_ATTENTION), *_FLUX2_RULES),
        spellings=_DIFFUSERS_SPELLINGS,
        linear_attention=True,
        required=("bn.running_mean",),
    ),
    Layout(
        name="ldm",
        family="vq",
        marks=_LDM_MARKS,
        forbidden=(),
        rules=(*_KL_OWN, (_CODEBOOK, _CODEBOOK)),
        spellings=_OWN_SPELLINGS,
        required=(_CODEBOOK,),
    ),
    Layout(
        name="diffusers",
        family="vq",
        marks=_DIFFUSERS_MARKS,
        forbidden=_OLD_ATTENTION_MARKS,
        rules=(*_diffusers_kl(_ATTENTION), (_CODEBOOK, _CODEBOOK)),
        spellings=_DIFFUSERS_SPELLINGS,
        linear_attention=True,
        required=(_CODEBOOK,),
    ),
    Layout(
        name="diffusers-old",
        family="vq",
        marks=_OLD_ATTENTION_MARKS,
        forbidden=(),
        rules=(*_diffusers_kl(_OLD_ATTENTION), (_CODEBOOK, _CODEBOOK)),
        spellings=_DIFFUSERS_SPELLINGS,
        linear_attention=True,
        required=(_CODEBOOK,),
    ),
    Layout(
        name="wan",
        family="wan",
        marks=WAN_MARKS,
        forbidden=(),
        rules=WAN_RULES,
    ),
    Layout(
        name="diffusers",
        family="wan",
        marks=WAN_DIFFUSERS_MARKS,
        forbidden=(),
        rules=WAN_DIFFUSERS_RULES,
    ),
    Layout(
        name="taesd-encoder",
        family="tiny",
        marks=("0.weight",),
        forbidden=(),
        rules=(("{k}.{rest}", "encoder.layers.{k}.{rest}"),),
    ),
    Layout(
        name="taesd-decoder",
        family="tiny",
        marks=("1.weight",),
        forbidden=("0.weight",),
        rules=(("{k+1}.{rest}", "decoder.layers.{k}.{rest}"),),
    ),
    Layout(
        name="taesd-comfyui",
        family="tiny",
        marks=("taesd_decoder.1.weight", "taesd_encoder.0.weight"),
        forbidden=(),
        rules=(
            ("taesd_encoder.{k}.{rest}", "encoder.layers.{k}.{rest}"),
            ("taesd_decoder.{k+1}.{rest}", "decoder.layers.{k}.{rest}"),
        ),
    ),
    Layout(
        name="taesd-diffusers",
        family="tiny",
        marks=("decoder.layers.0.weight", "encoder.layers.0.weight"),
        forbidden=(),
        rules=(("{c}.layers.{k}.{rest}", "{c}.layers.{k}.{rest}"),),
    ),
)

PREFIXES = ("first_stage_model.", "vae.", "model.", "module.")
"""What usually stands before every key, also one behind the other."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What compiling and sharing out put into keys, anywhere: they say nothing."""

IGNORED = (
    *("loss.", "model_ema.", "discriminator.", "colorize"),
    *("foundation_model.", "linear_proj.", "criterion.", "perceptual_loss.", "lpips.", "disc.", "discriminators."),
)
"""Keys beside the model that training leaves in its checkpoints; they begin like this."""

COUNTERS = ("bn.num_batches_tracked",)
"""What training counts: integers that may be absent and compute nothing."""

SCALARS = ("vae_scale", "vae_shift")
"""Single numbers that ComfyUI keeps beside a tiny model: raw latent = z / vae_scale + vae_shift."""

OTHER_MODELS: tuple[tuple[str, str], ...] = (
    ("decoder.layers.3.transformers.0.pre_norm.", "the audio VAE of Stable Audio 3"),
    ("decoder.layers.1.layers.0.beta", "the audio VAE of Stable Audio"),
    ("decoder.block.0.snake1.", "the audio VAE of Stable Audio"),
    ("vocoder.backbone.channel_layers.", "the audio VAE of ACE-Step"),
    ("vocoder.activation_post.downsample.", "the audio VAE of MMAudio"),
    ("vocoder.resblocks.0.convs1.", "the audio VAE of LTX"),
    ("pre_block.attn.zero_k_bias", "the audio VAE of MiniMax H3"),
    ("dec_in_proj.weight", "the audio VAE of MiniMax Music"),
    ("bn.running_mean", "a Flux.2 autoencoder"),
    ("decoder.conv_in.conv.weight", "a video autoencoder"),
    (".upsamples.0.upsamples.", "a Wan 2.2 autoencoder"),
    (".upsampler.resample.", "a Wan 2.2 autoencoder"),
    ("decoder.22.bias", "a tiny video autoencoder (TAEHV)"),
    ("quantize.embedding.weight", "a VQ autoencoder"),
    ("vquantizer.codebook.weight", "a Stable Cascade stage A autoencoder"),
    ("lora_", "a LoRA"),
    ("diffusion_model.", "a diffusion model"),
    ("double_blocks.", "a diffusion model"),
    ("transformer_blocks.", "a diffusion model"),
    ("text_model.", "a text encoder"),
)
"""(a piece of a key, what a file with it is), for errors only; the first match counts."""
