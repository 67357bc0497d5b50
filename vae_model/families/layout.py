"""Key layouts as data: how each kind of file names the tensors that our modules hold, invertibly.

A rule pairs a file's key template with ours. Placeholders: {c} encoder or decoder, {i} a level, {i~} the same level
counted from the other end, {j} or {k} a number, {k+1} one more, {m} a layer name, {p} weight or bias, {rest} anything;
{i:j} is number j of level i, {i:last} the last number of level i, where numbers run on from level to level.
Our own names are those of the network's first publication. A template of a file that ends in [0/3], [1/3] or [2/3]
means that third of a tensor, along its first side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

Rule = tuple[str, str]


@dataclass(frozen=True)
class Layout:
    """One way of naming the tensors of a family."""

    name: str
    family: str
    """Row of `table.FAMILIES` that the translated keys belong to."""
    marks: tuple[str, ...]
    """A file has this layout when it holds at least one of these keys ..."""
    rules: tuple[Rule, ...]
    """(file's template, our template), the first match counts."""
    forbidden: tuple[str, ...] = ()
    """... and none of these."""
    required: tuple[str, ...] = ()
    """Keys that must all be there, too."""
    spellings: tuple[Rule, ...] = ()
    """Other names of the same tensors: tried first when a file is read, never written."""
    linear_attention: bool = False
    """Attention weights are (C, C) matrices in the file, 1x1 convolutions (C, C, 1, 1) in our modules."""
    alias: str = ""
    """Another name that people have for it."""
    left_out: str = ""
    """The half, encoder or decoder, that such files do not hold."""
    unread: str = "refused"
    """What is done about settings that its other readers do not know: "refused", "told" in a note; "known": none."""
    without_frames: bool = False
    """Weights over frames have no axis of frames in the file, one of a single frame in our modules."""
    sides: Callable[[Mapping[str, tuple[int, ...]]], bool] | None = None
    """Whether the shapes under a file's keys are those of this family, where others have the same keys."""
    instead_of: tuple[str, ...] = ()
    """Families whose layouts have all the keys, too: where this one fits they are not meant."""


PREFIXES = ("first_stage_model.", "vae.", "model.", "module.")
"""What usually stands before every key, also one behind the other."""

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What compiling and sharing out put into keys, anywhere: they say nothing."""

IGNORED = (
    *("loss.", "model_ema.", "discriminator.", "colorize"),
    *("foundation_model.", "linear_proj.", "criterion.", "perceptual_loss.", "lpips.", "disc.", "discriminators."),
)
"""Keys beside the model that training leaves in its checkpoints; they begin like this."""


def is_counter(key: str) -> bool:
    """Whether it is what training counts: integers that may be absent and compute nothing."""
    return key.rpartition(".")[2] == "num_batches_tracked"


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
    ("quantize.embedding.weight", "a VQ autoencoder"),
    ("vquantizer.codebook.weight", "a Stable Cascade stage A autoencoder"),
    ("lora_", "a LoRA"),
    ("diffusion_model.", "a diffusion model"),
    ("double_blocks.", "a diffusion model"),
    ("transformer_blocks.", "a diffusion model"),
    ("text_model.", "a text encoder"),
)
"""(a piece of a key, what a file with it is), of networks that are none of our families: for errors only; the first
match counts."""
