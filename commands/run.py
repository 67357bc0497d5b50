"""`exact-vae encode` and `decode`: every file in its turn, and what became of it."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from ..vae_model.errors import InputError
from ..vae_model.errors.bytesize import parse_bytes
from ..vae_model.exact.stream.ranks import RankLost
from ..vae_model.files.clips import clip_target
from ..vae_model.files.latents import RATE_KEY, require_latent_suffix, write_latent
from ..vae_model.files.video_read import read_video
from ..vae_model.runs.checks import crop_centre
from ..vae_model.runs.methods import check_method
from ..vae_model.vae import VAE
from .decode import decode_file, is_there, knows_raw, require_ending, video_options, write_decoded
from .inputs import clip_frames, gather_inputs, is_video, read_input, require_kind
from .jobs import Outcome, Progress, Result, name_outputs, run_jobs
from .vae_option import chosen_vae, require_no_half, vae_files


def run_files(options: argparse.Namespace) -> int:
    """encode and decode: settle names, load the VAE, run, report."""
    check_method(options.method)
    if options.memory is not None:
        parse_bytes(options.memory)
    frames = getattr(options, "frames", False)
    suffix, work, write = _settled(options)
    files = vae_files(options.vae)
    if getattr(options, "shard", False):
        return _run_sharded(options, suffix, write)
    inputs = gather_inputs(options.inputs, options.command, frames=frames)
    if options.vae and len(files) == 1:
        require_no_half(inputs, files, options.command)
    folders = any(path.is_dir() for path in options.inputs) and not frames
    if options.output is not None and options.output.suffix and folders:
        raise InputError(f"-o: expected a folder for a folder of inputs, got {options.output}: name a folder")
    targets = name_outputs(inputs, options.output, suffix)
    pairs = list(zip(inputs, targets, strict=True)) if options.no_clobber else []
    kept = [target for source, target in pairs if is_there(source, target)]
    vae = chosen_vae(options) if len(kept) < len(targets) else None

    def run_one(source: Path, target: Path, progress: Progress) -> Result:
        if vae is None or target in kept:
            return Result([target], (), ["kept as it was"])
        if options.output is None and is_there(source, target):  # decoding photo.safetensors must not replace the photo
            require_kind(source, options.command)
            found = clip_target(target) if clip_frames(source) > 1 else target
            raise InputError(f"output: expected no such file yet, found {found}: name it with -o to replace it")
        return work(vae, source, target, method=options.method, memory=options.memory, progress=progress)

    quiet = options.quiet or options.json
    return _report(run_jobs(inputs, targets, run_one, what=options.command, quiet=quiet), options)


def _settled(options: argparse.Namespace) -> tuple[str, Callable[..., Result], Callable[..., Result]]:
    """The ending of files in a folder, what makes one, and what writes one that ranks have made.

    InputError or ValueError for endings that cannot be.
    """
    output: Path | None = options.output
    named = output if output is not None and output.suffix and not output.is_dir() else None
    if options.command == "encode":
        if named:
            require_latent_suffix(named)
        return ".safetensors", partial(_encode_file, frames=options.frames), write_decoded
    suffix = f".{options.format.lower().lstrip('.')}"
    require_ending("--format", suffix, suffix)
    if named:
        require_ending("-o", named.suffix.lower(), str(named))
    video = video_options(options, named.suffix.lower() if named else suffix)
    return suffix, partial(decode_file, video=video), partial(write_decoded, video=video)


def _run_sharded(options: argparse.Namespace, suffix: str, write: Callable[..., Result]) -> int:
    """decode as one of the processes that torchrun started; the first of them writes and reports."""
    from .shard import decode_files  # brings torch.distributed, which builds may lack

    if options.method != "exact":
        raise ValueError(f"method: expected exact with --shard, got {options.method!r}: leave out one of the two")
    if options.output is None or options.no_clobber:
        raise ValueError("--shard: expected -o and no --no-clobber, got another call: all processes need one output")
    try:
        rank, outcomes = decode_files(options, gather_inputs(options.inputs, "decode"), suffix, write)
    except RankLost as error:
        print(f"exact-vae: {error}", file=sys.stderr, flush=True)
        return 2
    if rank == 0:
        return _report(outcomes, options)
    for outcome in outcomes:
        if outcome.error:
            print(f"exact-vae: rank {rank}: {outcome.error}", file=sys.stderr, flush=True)
    return 0


def _encode_file(vae: VAE, source: Path, target: Path, *, progress: Progress, frames: bool, **run: Any) -> Result:
    metadata: dict[str, str] = {}
    if is_video(source, frames):
        pixels, rate, notes = read_video(source)
        metadata = {RATE_KEY: str(rate)} if rate else {}
    else:
        pixels, notes = read_input(source, "encode")
    clip = pixels.shape[0 if pixels.ndim == 4 else 1] if frames or pixels.ndim == 5 else 1
    if clip > 1 and vae.latent_dim == 2:
        raise InputError(
            f"encode: expected pictures for this VAE, got {source} as a clip of {clip} frames: "
            f"{'leave out --frames, or ' if frames else ''}give a VAE of clips with --vae"
        )
    progress.frames = clip if clip > 1 else 0
    f, given = vae.downscale_ratio, pixels.shape[-3:-1]
    if min(given) >= f and pixels.shape[-1] <= vae.input_channels + 1:  # what is no image is told by `encode`
        pixels = crop_centre(pixels.flatten(0, -4), f).unflatten(0, pixels.shape[:-3])
    latent = vae.encode(pixels, not_video=not frames, progress=progress, **run)
    height, width = pixels.shape[-3:-1]
    if (height, width) != given:
        notes.append(f"cropped to {width} x {height}, whole cells of {f} pixels")
    raw = knows_raw(vae)
    write_latent(latent, target, metadata, raw=raw)
    if not raw:
        notes.append("not raw latents, and not marked as such: say --latent-format")
    return Result([target], tuple(latent.shape), notes)


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
                print(f"{outcome.source} -> {written} ({outcome.seconds:.2f} s{outcome.rate}{notes})")
    if failed and len(outcomes) > 1 and not options.json:
        names = ", ".join(str(outcome.source) for outcome in failed)
        print(f"exact-vae: {len(failed)} of {len(outcomes)} failed: {names}", file=sys.stderr)
    return 0 if not failed else 1 if len(failed) < len(outcomes) else 2
