"""The rows B28-B32 of the requirement table: the video decoder and its layers, each against an independent formula."""

from typing import Any

import pytest
import torch
from exact_vae.vae_model.families.ldm.autoencoder import AutoencodingEngine
from exact_vae.vae_model.families.ldm.layers import AttnBlock, ResnetBlock
from exact_vae.vae_model.families.video.attention import frame_embedding
from exact_vae.vae_model.families.video.model import AE3DConv, AttnVideoBlock, VideoDecoder, VideoResBlock
from torch import Tensor, nn
from torch.nn import functional

# float64: what is compared differs in the order of a few sums only.
CLOSE = {"rtol": 0, "atol": 1e-12}
LEVELS: dict[str, Any] = {
    "ch": 8,
    "out_ch": 3,
    "ch_mult": (1, 2),
    "num_res_blocks": 1,
    "z_channels": 4,
    "num_groups": 4,
}
MODES = ("all", "conv-only", "attn-only", "only-last-conv")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(120)


def randomised(module: Any) -> Any:
    """Every weight random, those too that begin at zero, in float64 and in evaluation mode."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double().eval()


def random(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def make_decoder(time_mode: str, **options: Any) -> VideoDecoder:
    return randomised(VideoDecoder(**LEVELS, time_mode=time_mode, **options))


def kinds(decoder: VideoDecoder) -> tuple[str, ...]:
    return tuple(type(layer).__name__ for layer in (decoder.mid.block_1, decoder.mid.attn_1, decoder.conv_out))


@pytest.mark.parametrize(
    ("time_mode", "layers"),
    [
        ("all", ("VideoResBlock", "AttnVideoBlock", "AE3DConv")),
        ("conv-only", ("VideoResBlock", "AttnBlock", "AE3DConv")),
        ("attn-only", ("ResnetBlock", "AttnVideoBlock", "Conv2d")),
        ("only-last-conv", ("ResnetBlock", "AttnBlock", "AE3DConv")),
    ],
)
def test_each_mode_builds_its_layers_and_mixes_frames(time_mode: str, layers: tuple[str, ...]) -> None:
    """B28."""
    decoder = make_decoder(time_mode, attn_resolutions=(128,))
    assert kinds(decoder) == layers
    assert {type(level.block[0]).__name__ for level in decoder.up} == {layers[0]}  # pyright: ignore
    assert type(decoder.up[1].attn[0]).__name__ == layers[1]  # pyright: ignore
    z = random(6, 4, 3, 2)
    with torch.inference_mode():
        together, halves = decoder(z), decoder(z, timesteps=3)
        assert together.shape == (6, 3, 6, 4)
        torch.testing.assert_close(halves, torch.cat([decoder(z[:3]), decoder(z[3:])]), **CLOSE)
        assert (together - halves).abs().max() > 1e-3
        # Without mixing every frame stands for itself.
        alone = decoder(z, skip_video=True)
        torch.testing.assert_close(alone, torch.cat([decoder(frame, skip_video=True) for frame in z.split(1)]), **CLOSE)
        assert (together - alone).abs().max() > 1e-3


def test_the_decoder_s_defaults_and_attributes() -> None:
    """B28."""
    decoder = VideoDecoder(**LEVELS)
    assert (decoder.time_mode, decoder.merge_strategy, decoder.alpha) == ("conv-only", "learned", 0.0)
    assert decoder.video_kernel_size == 3
    assert decoder.conv_out.time_mix_conv.weight.shape == (3, 3, 3, 3, 3)  # pyright: ignore
    svd = VideoDecoder(**LEVELS, video_kernel_size=[3, 1, 1])
    assert svd.mid.block_1.time_stack.in_layers[2].weight.shape == (16, 16, 3, 1, 1)  # pyright: ignore


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"time_mode": "none"}, "time_mode: expected one of all, conv-only, attn-only, only-last-conv, got 'none'"),
        ({"merge_strategy": "learned_with_images"}, "merge_strategy: expected one of learned, fixed"),
        ({"video_kernel_size": [3, 1]}, "video_kernel_size: expected one odd number or three"),
        ({"video_kernel_size": 4}, "video_kernel_size: expected one odd number or three"),
        ({"time_mode": "all", "attn_type": "linear"}, "attn_type: expected vanilla for time_mode all"),
        ({"time_mode": "all", "use_linear_attn": True}, "attn_type: expected vanilla for time_mode all"),
    ],
)
def test_unknown_choices_are_refused(options: dict[str, Any], text: str) -> None:
    """B28."""
    with pytest.raises(ValueError, match=text):
        VideoDecoder(**LEVELS, **options)


def test_is_built_from_an_old_configuration() -> None:
    """B28. The configuration of Stable Video Diffusion's first stage, narrower."""
    model = AutoencodingEngine(
        encoder_config={"target": "sgm.modules.diffusionmodules.model.Encoder", "params": {**LEVELS, "in_channels": 3}},
        decoder_config={
            "target": "sgm.modules.autoencoding.temporal_ae.VideoDecoder",
            "params": {**LEVELS, "video_kernel_size": [3, 1, 1]},
        },
        regularizer_config={"target": "sgm.modules.autoencoding.regularizers.DiagonalGaussianRegularizer"},
    )
    assert kinds(model.decoder) == ("VideoResBlock", "AttnBlock", "AE3DConv")  # pyright: ignore
    assert model.decode(torch.randn(4, 4, 2, 2), timesteps=2).shape == (4, 3, 4, 4)


@pytest.mark.parametrize("strategy", ["learned", "fixed"])
@pytest.mark.parametrize("kernel", [3, (3, 1, 1), (5, 1, 3), None])
def test_the_video_block_mixes_frames_by_its_factor(strategy: str, kernel: Any) -> None:
    """B29."""
    block = VideoResBlock(
        in_channels=4, out_channels=8, temb_channels=6, num_groups=2, video_kernel_size=kernel, alpha=0.3,
        merge_strategy=strategy,
    )  # fmt: skip
    assert isinstance(block.mix_factor, nn.Parameter) == (strategy == "learned")
    assert block.mix_factor.shape == (1,)
    assert "mix_factor" in block.state_dict()
    randomised(block)
    x, temb = random(6, 4, 5, 3), random(6, 6)
    stack: Any = block.time_stack
    assert stack.in_layers[0].eps == stack.out_layers[0].eps == 1e-5
    assert block.norm1.eps == 1e-6

    spatial = ResnetBlock.forward(block, x, temb)
    groups = spatial.reshape(2, 3, 8, 5, 3).permute(0, 2, 1, 3, 4)  # (B, C, T, H, W)
    pad = [0] * 3 if kernel is None else [size // 2 for size in ([kernel] * 3 if isinstance(kernel, int) else kernel)]
    pad[0] = 1 if kernel is None else pad[0]
    h = groups
    for norm, conv in ((stack.in_layers[0], stack.in_layers[2]), (stack.out_layers[0], stack.out_layers[3])):
        h = functional.silu(functional.group_norm(h, 2, norm.weight, norm.bias, 1e-5))
        h = functional.conv3d(h, conv.weight, conv.bias, padding=pad)
    temporal = groups + h
    alpha = block.mix_factor.sigmoid() if strategy == "learned" else torch.tensor(0.3).double()
    wanted = (alpha * temporal + (1 - alpha) * groups).permute(0, 2, 1, 3, 4).reshape(6, 8, 5, 3)
    torch.testing.assert_close(block(x, temb, timesteps=3), wanted, **CLOSE)
    torch.testing.assert_close(block(x, temb, skip_video=True), spatial, **CLOSE)
    assert (wanted - spatial).abs().max() > 1e-3
    torch.testing.assert_close(block(x[:3], temb[:3]), wanted[:3], **CLOSE)  # the whole batch is the default


def test_a_fresh_block_changes_nothing_over_time_and_learns() -> None:
    """B29."""
    block = VideoResBlock(in_channels=8, temb_channels=0, num_groups=2).double()
    x = random(3, 8, 4, 4)
    torch.testing.assert_close(block(x), block(x, skip_video=True), **CLOSE)
    randomised(block)(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in block.parameters())


@pytest.mark.parametrize("timesteps", [4, 0, 7])
def test_groups_must_divide_the_batch(timesteps: int) -> None:
    """B29."""
    block = VideoResBlock(in_channels=8, temb_channels=0, num_groups=2)
    with pytest.raises(ValueError, match=f"expected a divisor of the batch of 6 frames, got {timesteps}"):
        block(torch.zeros(6, 8, 2, 2), timesteps=timesteps)


@pytest.mark.parametrize("kernel", [(3, 1, 1), 3])
def test_the_last_convolution_mixes_frames(kernel: Any) -> None:
    """B30."""
    conv = randomised(AE3DConv(4, 3, video_kernel_size=kernel, kernel_size=3, stride=1, padding=1))
    assert sorted(conv.state_dict()) == ["bias", "time_mix_conv.bias", "time_mix_conv.weight", "weight"]
    x = random(6, 4, 5, 4)
    spatial = functional.conv2d(x, conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(conv(x, skip_video=True), spatial, **CLOSE)
    over_time = functional.pad(spatial.reshape(2, 3, 3, 5, 4), (0, 0, 0, 0, 0, 0, 1, 1))  # zero frames at both ends
    rows = functional.pad(over_time, (1, 1, 1, 1)) if kernel == 3 else over_time
    weight, bias = conv.time_mix_conv.weight, conv.time_mix_conv.bias
    assert bias is not None
    wanted = sum(
        functional.conv2d(rows[:, shift : shift + 3].flatten(0, 1), weight[:, :, shift], None) for shift in range(3)
    )
    assert isinstance(wanted, Tensor)
    torch.testing.assert_close(conv(x, timesteps=3), wanted + bias[:, None, None], **CLOSE)


def test_attn_video_block_mixes_the_other_way_round() -> None:
    """B31."""
    block = randomised(AttnVideoBlock(8, num_groups=2))
    x = random(6, 8, 3, 2)
    spatial = AttnBlock.forward(block, x)
    torch.testing.assert_close(block(x, timesteps=3, skip_video=True), spatial, **CLOSE)
    with torch.no_grad():
        block.mix_factor.fill_(60.0)  # alpha is 1: the spatial part alone, where VideoResBlock has the temporal one
        torch.testing.assert_close(block(x, timesteps=3), spatial, **CLOSE)
        block.mix_factor.fill_(-60.0)
        temporal = block(x, timesteps=3) - x
        assert (temporal + x - spatial).abs().max() > 1e-3
        block.mix_factor.fill_(0.4)
        alpha = torch.sigmoid(torch.tensor(0.4, dtype=torch.float64))
        wanted = x + alpha * (spatial - x) + (1 - alpha) * temporal  # proj_out is linear but for its bias
        torch.testing.assert_close(block(x, timesteps=3), wanted, **CLOSE)
    fixed = AttnVideoBlock(8, alpha=0.25, merge_strategy="fixed", num_groups=2)
    assert not isinstance(fixed.mix_factor, nn.Parameter)
    assert fixed.mix_factor.item() == 0.25


def test_its_transformer_equals_diffusers() -> None:
    """B31."""
    pytest.importorskip("diffusers")
    from diffusers.models.attention import TemporalBasicTransformerBlock
    from diffusers.models.embeddings import get_timestep_embedding

    block = randomised(AttnVideoBlock(8, num_groups=2))
    # Its second attention wants the width of a context; given none, it attends to the frames.
    theirs = TemporalBasicTransformerBlock(8, 8, num_attention_heads=1, attention_head_dim=8, cross_attention_dim=8)
    theirs.double().load_state_dict(block.time_mix_block.state_dict())
    x = random(6, 8, 3, 2)
    h = block.attention(x)  # (B * T, H*W, C)
    numbers = get_timestep_embedding(torch.arange(3), 8, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(frame_embedding(3, 8), numbers, rtol=0, atol=1e-7)
    told = h + block.video_time_embed(frame_embedding(3, 8).double()).repeat(2, 1)[:, None]
    temporal = theirs(told, num_frames=3)
    alpha = block.mix_factor.sigmoid()
    mixed = alpha * h + (1 - alpha) * temporal
    wanted = x + block.proj_out(mixed.transpose(1, 2).reshape(x.shape))
    torch.testing.assert_close(block(x, timesteps=3), wanted, **CLOSE)


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_frame_numbers_have_embeddings_of_any_width(dim: int) -> None:
    """B31."""
    made = frame_embedding(4, dim)
    assert made.shape == (4, dim)
    assert made.isfinite().all()
    assert dim % 2 == 0 or not made[:, -1].any()


@pytest.mark.parametrize("time_mode", MODES)
def test_the_last_layer_is_a_weight(time_mode: str) -> None:
    """B32."""
    decoder = make_decoder(time_mode)
    conv: Any = decoder.conv_out
    assert decoder.get_last_layer(skip_time_mix=True) is conv.weight
    last = conv.weight if time_mode == "attn-only" else conv.time_mix_conv.weight
    assert decoder.get_last_layer() is last
