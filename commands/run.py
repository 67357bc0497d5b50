"""`exact-vae encode` and `decode`: every file in its turn, and what became of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..vae_model.errors import InputError
from ..vae_model.errors.bytesize import parse_bytes
from ..vae_model.exact.stream.ranks import RankLost
from ..vae_model.families.table import FAMILIES
from ..vae_model.files.images import require_format, require_image_suffix, write_image
from ..vae_model.files.latents import are_raw, require_latent_suffix, write_latent
from ..vae_model.runs.methods import check_method
from ..vae_model.vae import VAE
from .inputs import gather_inputs, read_input, require_kind
from .jobs import Outcome, Result, name_outputs, run_jobs
from .vae_option import chosen_vae, require_no_half, vae_files


def run_files(options: argparse.Namespace) -> int:
    """encode and decode: settle names, load the VAE, run, report."""
    check_method(options.method)
    if options.memory is not None:
        parse_bytes(options.memory)
    suffix = ".safetensors" if options.command == "encode" else f".{options.format.lower().lstrip('.')}"
    require_suffix = require_latent_suffix if options.command == "encode" else require_image_suffix
    if options.command == "decode":
        require_format(options.format)
    if options.output is not None and options.output.suffix and not options.output.is_dir():
        require_suffix(options.output)
    files = vae_files(options.vae)
    if getattr(options, "shard", False):
        return _run_sharded(options, suffix)
    inputs = gather_inputs(options.inputs, options.command)
    if options.vae and len(files) == 1:
        require_no_half(inputs, files, options.command)
    if options.output is not None and options.output.suffix and any(path.is_dir() for path in options.inputs):
        raise InputError(f"-o: expected a folder for a folder of inputs, got {options.output}: name a folder")
    targets = name_outputs(inputs, options.output, suffix)
    kept = [target for target in targets if options.no_clobber and _is_there(target)]
    vae = chosen_vae(options) if len(kept) < len(targets) else None
    work = _encode_file if options.command == "encode" else _decode_file

    def run_one(source: Path, target: Path, progress: Callable[[float], None]) -> Result:
        if vae is None or target in kept:
            return Result([target], (), ["kept as it was"])
        if options.output is None and _is_there(target):  # decoding photo.safetensors must not replace the photo
            require_kind(source, options.command)
            raise InputError(f"output: expected no such file yet, found {target}: name it with -o to replace it")
        return work(vae, source, target, method=options.method, memory=options.memory, progress=progress)

    quiet = options.quiet or options.json
    return _report(run_jobs(inputs, targets, run_one, what=options.command, quiet=quiet), options)


def _is_there(target: Path) -> bool:
    """Whether the output, or the first picture of a batch, exists."""
    return target.exists() or target.with_name(f"{target.stem}_00001{target.suffix}").exists()


def _run_sharded(options: argparse.Namespace, suffix: str) -> int:
    """decode as one of the processes that torchrun started; the first of them writes and reports."""
    from .shard import decode_files  # brings torch.distributed, which builds may lack

    if options.method != "exact":
        raise ValueError(f"method: expected exact with --shard, got {options.method!r}: leave out one of the two")
    if options.output is None or options.no_clobber:
        raise ValueError("--shard: expected -o and no --no-clobber, got another call: all processes need one output")
    try:
        rank, outcomes = decode_files(options, gather_inputs(options.inputs, "decode"), suffix, _write_images)
    except RankLost as error:
        print(f"exact-vae: {error}", file=sys.stderr, flush=True)
        return 2
    if rank == 0:
        return _report(outcomes, options)
    for outcome in outcomes:
        if outcome.error:
            print(f"exact-vae: rank {rank}: {outcome.error}", file=sys.stderr, flush=True)
    return 0


def _encode_file(vae: VAE, source: Path, target: Path, **run: Any) -> Result:
    pixels, notes = read_input(source, "encode")
    latent = vae.encode(pixels, **run)
    f = vae.downscale_ratio
    height, width = (side * f for side in latent.shape[-2:])
    if (height, width) != tuple(pixels.shape[1:3]):
        notes.append(f"cropped to {width} x {height}, whole cells of {f} pixels")
    raw = _knows_raw(vae)
    write_latent(latent, target, raw=raw)
    if not raw:
        notes.append("not raw latents, and not marked as such: say --latent-format")
    return Result([target], tuple(latent.shape), notes)


def _decode_file(vae: VAE, source: Path, target: Path, **run: Any) -> Result:
    result = _write_images(vae.decode(read_input(source, "decode"), **run), target)
    if not are_raw(source) and _knows_raw(vae):
        result.notes.append("these latents are not raw but a tiny VAE's own: encode again with --latent-format")
    elif are_raw(source) and not _knows_raw(vae):
        result.notes.append("raw latents for a VAE whose scale is not known: say --latent-format")
    return result


def _knows_raw(vae: VAE) -> bool:
    return FAMILIES[vae.loaded.family].knows_raw(vae.loaded.config, vae.loaded.hints)


def _write_images(images: Tensor, target: Path) -> Result:
    paths = [target]
    if len(images) > 1:
        paths = [target.with_name(f"{target.stem}_{number + 1:05d}{target.suffix}") for number in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        write_image(image, path)
    return Result(paths, tuple(images.shape))


def _report(outcomes: list[Outcome], options: argparse.Namespace) -> int:
    """What became of every input: failures to stderr, the rest as text or all as JSON to stdout. The exit code."""
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed:
        print(f"exact-vae: {outcome.error}", file=sys.stderr)
    if options.json:
        rows = [
            {
                "input": str(outcome.source),
                "outputs": [str(path) for path in outcome.result.outputs] if outcome.result else [],
                "shape": list(outcome.result.shape) if outcome.result else None,
                "notes": outcome.result.notes if outcome.result else [],
                "seconds": round(outcome.seconds, 3),
                "error": outcome.error,
            }
            for outcome in outcomes
        ]
        print(json.dumps({"command": options.command, "method": options.method, "files": rows}))
    elif not options.quiet:
        for outcome in outcomes:
            if outcome.result:
                written = ", ".join(str(path) for path in outcome.result.outputs)
                notes = "".join(f"; {note}" for note in outcome.result.notes)
                print(f"{outcome.source} -> {written} ({outcome.seconds:.2f} s{notes})")
    if failed and len(outcomes) > 1 and not options.json:
        names = ", ".join(str(outcome.source) for outcome in failed)
        print(f"exact-vae: {len(failed)} of {len(outcomes)} failed: {names}", file=sys.stderr)
    return 0 if not failed else 1 if len(failed) < len(outcomes) else 2
