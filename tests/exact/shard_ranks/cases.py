"""What every rank runs for exact/test_shard.py: case by case, each an answer of plain numbers and text.

The reference is a run of the whole image in the same process; rows of other ranks must add nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from exact_vae import VAE, load_vae
from exact_vae.model_management import LocalHost
from exact_vae.tests.exact.programs import build_program
from exact_vae.tests.families.table import ROWS, hints, random_model
from exact_vae.vae_model.checkpoint.save import to_layout
from exact_vae.vae_model.exact.memory.spill import Spill
from exact_vae.vae_model.exact.program import Program
from exact_vae.vae_model.exact.schedule import LevelSchedule, Schedule, uniform
from exact_vae.vae_model.exact.sharding.distributed import DistributedRanks
from exact_vae.vae_model.exact.sharding.share import Share
from exact_vae.vae_model.exact.stream.context import Context
from exact_vae.vae_model.exact.stream.run import run_program
from exact_vae.vae_model.families.ldm.autoencoder import build_kl
from exact_vae.vae_model.families.ldm.coder import Decoder, Encoder
from exact_vae.vae_model.families.ldm.config import KLConfig, LevelsConfig
from exact_vae.vae_model.families.table import decoder_of
from exact_vae.vae_model.families.tiny.model import AutoencoderTiny
from exact_vae.vae_model.families.video.model import VideoConfig
from exact_vae.vae_model.runs.sharded import decode_sharded
from torch import Tensor, nn

CPU = torch.device("cpu")
Answer = dict[str, Any]
Case = Callable[[DistributedRanks], Answer]
SCHEDULES: dict[str, dict[str, Any]] = {
    "resident": {},
    "recompute": {"store_hidden": False, "store_enlarged": False},
    "recompute all": {"store_hidden": False, "store_enlarged": False, "store_blocks": False},
    "half spill": {"device_share": 0.5, "stream_attention": True},
}


def randomised(module: nn.Module) -> Any:
    generator = torch.Generator().manual_seed(7)
    for parameter in module.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = noise / parameter[0].numel() ** 0.5 if parameter.ndim > 1 else 1 + 0.3 * noise
    return module.eval().double().requires_grad_(False)


def padded(program: Program, mode: str) -> None:
    """Other borders, in the modules that a program is then built from."""
    for layer in {id(layer): layer for layer in _layers(program)}.values():
        layer.padding_mode = mode


def _layers(program: Program) -> list[Any]:
    convs: list[Any] = []
    for step in program.ops:
        convs += [getattr(step, name).module for name in ("conv", "conv1", "conv2") if hasattr(step, name)]
    return [conv for conv in convs if conv.kernel_size == (3, 3)]


def hard_input(batch: int, channels: int, height: int, width: int) -> Tensor:
    """A gradient, noise and one outlier: white noise alone hides wrong statistics."""
    x = torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x += torch.linspace(-3, 3, width, dtype=torch.float64) + torch.linspace(-2, 4, height, dtype=torch.float64)[:, None]
    x[0, 0, 0, -1] = 25.0
    return x


def run(program: Program, schedule: Schedule, x: Tensor, ranks: DistributedRanks | None, rows: int) -> Tensor:
    """The result's rows of this rank, or all of them without ranks."""
    context = Context(len(x), x.dtype, CPU, spill=Spill(CPU))
    if ranks is not None:
        context = replace(context, share=Share(rows, ranks.rank, ranks.count), ranks=ranks)
    strips: list[Tensor] = []
    run_program(program, schedule, context, x, lambda top, strip: strips.append(strip.clone()))
    return torch.cat(strips, dim=2)


def compared(actual: Tensor, expected: Tensor) -> Answer:
    spread = float(expected.max() - expected.min())
    return {"difference": float((actual - expected).abs().max()) / spread, "spread": spread}


def engine(make: Callable[[], Program], batch: int, height: int, width: int, rows: int, *names: str) -> Case:
    """One program under some schedules; every rank has strips of another height."""

    @cache
    def reference() -> tuple[Program, Tensor, Tensor]:
        program = make()
        x = hard_input(batch, program.in_channels, height, width)
        return program, x, run(program, uniform(program.level_count, 64), x, None, rows)

    def case(ranks: DistributedRanks) -> Answer:
        program, x, expected = reference()
        share = Share(rows, ranks.rank, ranks.count)
        top, bottom = (row * expected.shape[2] // rows for row in share.bounds(ranks.rank))
        worst: Answer = {"difference": 0.0, "spread": 1e9}
        for name in names or SCHEDULES:
            schedule = uniform(program.level_count, 1 + 2 * ranks.rank, **SCHEDULES[name])
            found = compared(run(program, schedule, x, ranks, rows), expected[:, :, top:bottom])
            worst["difference"] = max(worst["difference"], found["difference"])
            worst["spread"] = min(worst["spread"], found["spread"])
        return worst

    return case


def decoder(mode: str = "zeros", **options: Any) -> Callable[[], Program]:
    def make() -> Program:
        values: dict[str, Any] = {"ch": 8, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4, "num_groups": 4}
        net = randomised(Decoder(**{**values, "out_ch": 3, **options}))
        padded(build_program(net), mode)
        return build_program(net)

    return make


def encoder() -> Program:
    return build_program(
        randomised(Encoder(ch=8, ch_mult=(1, 2, 2), num_res_blocks=1, z_channels=4, num_groups=4, in_channels=3))
    )


def tiny(half: str, **options: Any) -> Callable[[], Program]:
    blocks: dict[str, Any] = {"encoder_block_out_channels": (8, 4, 8), "decoder_block_out_channels": (8, 4, 8)}
    blocks |= {"num_encoder_blocks": (1, 2, 1), "num_decoder_blocks": (2, 1, 1)}

    def make() -> Program:
        return build_program(getattr(randomised(AutoencoderTiny(**blocks, **options)), half))

    return make


def flux2() -> Program:
    return decoder_of(random_model(ROWS["Flux.2"]).double()).program


def linear_attention() -> Program:
    """Its sums are over all ranks' rows, and its scales see rows of the rank behind the next one."""
    return decoder_of(random_model(ROWS["Sana"]).double()).program


def temporal() -> Program:
    levels = LevelsConfig(8, (8, 16), 1)
    config = VideoConfig(4, 4, None, levels, quant_conv=False, post_quant_conv=False, num_groups=8)
    return build_program(randomised(build_kl(config).decoder))


ENGINE: dict[str, Case] = {
    "decoder, 5 rows": engine(decoder(), 2, 5, 4, 5),
    "decoder, 11 rows": engine(decoder(num_res_blocks=2), 1, 11, 3, 11, "resident", "recompute"),
    "decoder, a row for each rank": engine(decoder(), 1, 4, 3, 4, "recompute all"),
    "circular": engine(decoder("circular"), 1, 5, 4, 5, "resident", "half spill"),
    "circular, a row for each rank": engine(decoder("circular"), 1, 4, 4, 4, "recompute all"),
    "reflect": engine(decoder("reflect"), 1, 5, 4, 5, "recompute all"),
    "replicate": engine(decoder("replicate"), 1, 4, 4, 4, "recompute all"),
    "attention in levels": engine(decoder(attn_resolutions=(256, 128), resolution=256), 1, 5, 3, 5, "half spill"),
    "encoder": engine(encoder, 1, 5 * 4, 8, 5, "resident", "recompute all"),
    "tiny decoder": engine(tiny("decoder"), 1, 5, 4, 5, "resident"),
    "tiny encoder": engine(tiny("encoder"), 1, 4 * 5, 4, 5, "resident"),
    "tiny decoder with GroupNorm": engine(tiny("decoder", midblock_gn=True), 1, 5, 4, 5, "resident", "half spill"),
    "Flux.2 program": engine(flux2, 1, 5, 3, 5, "resident", "recompute all"),
    "linear attention": engine(linear_attention, 2, 4, 3, 4, "resident", "half spill"),
    "temporal": engine(temporal, 3, 5, 4, 5, "resident", "recompute all"),
}
"""float64: within 1e-12 of the range."""


# -- whole decodes -----------------------------------------------------------------------------------------------------


class RankHost(LocalHost):
    """Memory as a test says; fails or stops at the n-th strip of a run."""

    free_bytes = 2**30

    def __init__(self) -> None:
        super().__init__()
        self.strips = 0
        self.fails: Callable[[int], BaseException | None] = lambda strip: None

    def get_free_memory(self, device: torch.device) -> int:
        return self.free_bytes

    def check_interrupt(self) -> None:
        self.strips += 1
        error = self.fails(self.strips)
        if error is not None:
            raise error


@cache
def weights(name: str) -> Any:
    return to_layout(random_model(ROWS[name]), ROWS[name].layouts[0])


def family(name: str) -> VAE:
    return load_vae(weights(name), device="cpu", dtype="float32", config=hints(ROWS[name].config), host=RankHost())


def against_untiled(vae: VAE, z: Tensor, ranks: DistributedRanks, **options: Any) -> Answer:
    before = ranks.traffic.numbers()
    image = decode_sharded(vae, z, ranks, **options)
    sent = dict(zip(ranks.traffic.sent, ranks.traffic.since(before), strict=True))
    answer: Answer = {"sent": sent, "whole": image is not None}
    if image is not None:
        assert not image.is_inference()  # it can be trained on
        answer |= compared(image, vae.decode(z, "untiled"))
    return answer


def of_family(name: str) -> Case:
    def case(ranks: DistributedRanks) -> Answer:
        row = ROWS[name]
        return against_untiled(family(name), hard_input(1, row.channels, 5, 3).float(), ranks)

    return case


def clips(ranks: DistributedRanks) -> Answer:
    """Two of nine frames each."""
    z = hard_input(2 * 3, 16, 5, 3).float().unflatten(0, (2, 3)).transpose(1, 2)
    return against_untiled(family("Wan 2.1, Qwen-Image"), z, ranks)


def bundled(ranks: DistributedRanks) -> Answer:
    """The VAE that ships with the project, two images of an odd size."""
    vae = load_vae("bundled", device="cpu", dtype="float32", host=RankHost())
    return against_untiled(vae, hard_input(2, vae.latent_channels, 9, 7).float() / 4, ranks)


def wide_statistics(ranks: DistributedRanks) -> Answer:
    """As many norms of as many groups as the decoders of SD, SDXL, SD3 and Flux.1 have; eight values a group less."""
    torch.manual_seed(0)
    levels = LevelsConfig(32, (32, 32, 32, 32), num_res_blocks=2)
    model = build_kl(KLConfig(4, 4, levels, levels, num_groups=32))
    vae = load_vae(model.state_dict(), device="cpu", dtype="float32", host=RankHost())
    return against_untiled(vae, hard_input(1, 4, 5, 3).float(), ranks)


def little_memory_on_one(ranks: DistributedRanks) -> Answer:
    """The last rank can store little: none stores more, and every rank keeps to its own budget."""
    vae = family("SD1, SD2, SDXL")
    z = hard_input(1, 4, 25, 16).float()
    limit = 700_000 if ranks.rank == ranks.count - 1 else 2**30
    answer = against_untiled(vae, z, ranks, memory=limit)
    plan: Any = vae.last_plan
    names = [_structure(level) for level in plan.schedule]
    return answer | {"peak": plan.peak_bytes, "limit": limit, "structure": names, "rows": plan.shape[2]}


def _structure(level: LevelSchedule) -> list[bool]:
    return [level.store_hidden, level.store_enlarged, level.store_blocks]


FAMILY_RANKS = 3
"""So many decode every family."""
DECODES: dict[str, Case] = {name: of_family(name) for name in ROWS}
OTHERS: dict[str, Case] = {
    "bundled": bundled,
    "clips": clips,
    "statistics": wide_statistics,
    "little memory on one": little_memory_on_one,
}
