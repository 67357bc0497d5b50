"""The command line's sharded decode: what each of the processes that torchrun started does."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..vae_model.errors.bytesize import parse_bytes
from ..vae_model.exact.sharding.distributed import connect, local_rank
from ..vae_model.exact.sharding.traffic import KINDS, describe
from ..vae_model.files.latents import read_latent
from ..vae_model.runs.sharded import decode_sharded, require_sharded
from ..vae_model.vae import VAE
from .jobs import Outcome, Progress, Result, name_outputs, run_jobs
from .vae_option import chosen_vae


def decode_files(
    options: argparse.Namespace, inputs: Sequence[Path], suffix: str, write: Callable[[VAE, Path, Tensor, Path], Result]
) -> tuple[int, list[Outcome]]:
    """Decode latent files by all ranks together; rank 0 writes. Returns this rank and what became of every file.

    Args:    suffix: of files in a folder. write: (vae, input, images, output) -> what was written.
    Raises:  ValueError where torchrun did not start this process or has started more than there are GPUs, RankLost
             where another process is gone.
    """
    target, output = shard_device(options.device), options.output
    budget = None if options.memory is None else parse_bytes(options.memory)
    quiet = options.quiet or options.json
    with connect(target) as ranks:
        with ranks.together():
            # Only rank 0 needs the output's folder, which other machines may not have.
            outputs = name_outputs(inputs, output, suffix) if ranks.rank == 0 else [output] * len(inputs)
            vae = chosen_vae(options, target)
            require_sharded(vae)
        ranks.meet("start")

        def run_one(source: Path, target: Path, progress: Progress) -> Result:
            with ranks.together():
                z = read_latent(source)
            before = ranks.traffic.numbers()
            images = decode_sharded(vae, z, ranks, budget, neighbours=local_rank()[1], progress=progress)
            everyone = ranks.meet("traffic", ranks.traffic.since(before))
            if images is None:
                return Result([], tuple(z.shape))
            result = write(vae, source, images, target)
            for rank, sent in enumerate(everyone):
                result.notes.append(describe(rank, ranks.count, dict(zip(KINDS, sent, strict=True))))
            return result

        outcomes = run_jobs(inputs, outputs, run_one, what="decode", quiet=quiet or ranks.rank > 0)
        ranks.meet("item")  # a process that ends with an error takes the others with it, so rank 0 writes first
        return ranks.rank, outcomes


def shard_device(text: str) -> torch.device:
    """The device of this rank: one GPU for each process of this machine, or the CPU for all of them."""
    rank, count = local_rank()
    if text not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device: expected auto, cpu or cuda with --shard, got {text!r}: every rank takes its own GPU")
    if text == "cpu" or (text == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    found = torch.cuda.device_count()
    if found < count:
        raise ValueError(
            f"shard: expected a GPU for each of {count} processes, got {found}: "
            "lower --nproc-per-node or use --device cpu"
        )
    return torch.device("cuda", rank)
