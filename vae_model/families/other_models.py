"""Networks that are none of our families: what a file of one is called in an error."""

from __future__ import annotations

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
