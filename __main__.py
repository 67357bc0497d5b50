"""The command line: `exact-vae COMMAND ...` or `python -m exact_vae COMMAND ...`.

Exit codes: 0 done, 1 some inputs failed, 2 nothing was done (wrong usage, no such VAE, output not writable).
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from . import __version__
from .commands.completion import VALUES, completion_script, refuse_words
from .commands.sample import add_sample, run_sample

_SHORT = ("plan", "info")
"""Commands that read a header and compute a little. Nothing is collected while they run: one pass over all that PyTorch
has made takes longer than the command itself."""


def make_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(prog="exact-vae", description="Images to latents and back, without damage.")
    parser.add_argument("--version", action="version", version=f"exact-vae {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    common.add_argument("--quiet", action="store_true", help="no progress bar, nothing but errors")
    common.add_argument("--debug", action="store_true", help="the traceback of every error, too")
    choosing = argparse.ArgumentParser(add_help=False)
    choosing.add_argument(
        "--variant", metavar="NAME", help="of a folder's files, such as fp16; default: the plain ones"
    )
    choosing.add_argument("--part", metavar="NAME", help="of several VAEs in a checkpoint, such as ema")
    writing = argparse.ArgumentParser(add_help=False)
    writing.add_argument("--no-clobber", action="store_true", help="keep files that are there, and skip their inputs")
    running = argparse.ArgumentParser(add_help=False, parents=[common, choosing, writing])
    running.add_argument(
        "-o", "--output", type=Path, help="a file, or a folder for several inputs; default: beside each input, if new"
    )
    running.add_argument(
        "--vae", action="append", metavar="FILE", help="a VAE file or folder; --vae A --vae B, or A,B, for two halves"
    )
    running.add_argument("--method", default="exact", help="exact (default), untiled, or blend (approximate)")
    running.add_argument("--memory", default=None, metavar="AMOUNT", help="limit above the weights, such as 2GiB")
    running.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    running.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")

    latents = argparse.ArgumentParser(add_help=False)
    latents.add_argument(
        "--latent-format",
        metavar="NAME",
        help="whose latents a tiny VAE works on: sd, sdxl, sd3, flux, flux2 or raw; default: as its file or name tells",
    )
    encode = commands.add_parser("encode", parents=[running, latents], help="images to latents")
    encode.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IMAGE",
        help="PNG, JPEG, WebP or TIFF, a video, a folder, or an array (.npy)",
    )
    encode.add_argument(
        "--frames",
        action="store_true",
        help="a folder's pictures are frames of one clip, in the order of their names; so are those of an array or GIF",
    )
    decode = commands.add_parser("decode", parents=[running, latents], help="latents to images")
    decode.add_argument(
        "inputs", nargs="+", type=Path, metavar="LATENT", help="safetensors with the key latent_tensor, or a folder"
    )
    decode.add_argument(
        "--format",
        default="png",
        help="of files in a folder: png (default), jpg, webp, tiff, npy, safetensors; of clips mp4, mkv, webm, gif",
    )
    decode.add_argument("--fps", help="of video files; default: as what was encoded, else as the model makes clips")
    decode.add_argument(
        "--chroma", default="420", choices=["420", "444"], help="of .mp4, .mov and .webm: 420 (default) plays anywhere"
    )
    decode.add_argument("--lossless", action="store_true", help="video files that hold every value; .mkv always does")
    decode.add_argument(
        "--shard",
        action="store_true",
        help="share the rows over processes: torchrun --nproc-per-node N -m exact_vae decode --shard ...",
    )
    plan = commands.add_parser("plan", parents=[common, choosing], help="how a size would run, and what it would take")
    plan.add_argument("--size", required=True, metavar="WxH", help="of the image in pixels, such as 4096x4096")
    plan.add_argument("--frames", type=int, default=1, metavar="N", help="of a clip of a video VAE, such as 81")
    plan.add_argument("--memory", default=None, metavar="AMOUNT", help="budget above the weights; default: all free")
    plan.add_argument(
        "--host-memory",
        default=None,
        metavar="AMOUNT",
        help="for strips that wait there, 0: none; default: as in a run",
    )
    plan.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    plan.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
    plan.add_argument("--direction", choices=["decode", "encode"], default="decode")
    plan.add_argument("--vae", action="extend", nargs="+", metavar="FILE", help="a VAE file, or its two halves")
    convert = commands.add_parser(
        "convert", parents=[common, choosing, writing, latents], help="a VAE file in another layout"
    )
    convert.add_argument("inputs", nargs="+", metavar="VAE_FILE", help="a VAE file, or its two halves")
    convert.add_argument(
        "-o", "--output", type=Path, required=True, help="a .safetensors file; for diffusers also a folder"
    )
    convert.add_argument(
        "--layout",
        required=True,
        metavar=f"{{{','.join(VALUES['--layout'])}}}",
        help="ldm, diffusers or diffusers-old; of Wan and Qwen-Image wan or diffusers; of DC-AE original or diffusers; "
        "of tiny VAEs one of taesd-...",
    )
    convert.add_argument("--dtype", default=None, help="float32, bfloat16 or float16; default: as in the input")
    evaluate = commands.add_parser("evaluate", parents=[common, choosing], help="how well VAEs reconstruct pictures")
    evaluate.add_argument("vaes", nargs="*", metavar="VAE", help='a VAE file, two halves joined by "+", or bundled')
    evaluate.add_argument("--vae", action="append", metavar="FILE", help="one VAE more; twice for its two halves")
    evaluate.add_argument("--images", type=Path, required=True, metavar="DIR", help="a folder of pictures")
    evaluate.add_argument("--crop", type=int, default=512, metavar="PIXELS", help="side of the centre crops; 512")
    evaluate.add_argument("--sheet", type=Path, metavar="FILE.png", help="write a contact sheet of the first pictures")
    evaluate.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")
    evaluate.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, xpu")
    add_sample(commands, [common, choosing, latents])
    train = commands.add_parser("train", help="train an autoencoder as a configuration says")
    train.add_argument("config", metavar="CONFIG", help="a YAML file, or the name of one that comes with the project")
    train.add_argument("overrides", nargs="*", metavar="key=value", help="such as trainer.batches=100")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint of output.folder")
    train.add_argument("--quiet", action="store_true", help="no progress bar, nothing but errors")
    train.add_argument("--debug", action="store_true", help="the traceback of an error, too")
    info = commands.add_parser(
        "info", parents=[common, choosing, latents], help="what a VAE file is, read from its header"
    )
    info.add_argument("inputs", nargs="+", metavar="VAE_FILE", help="a VAE file, or its two halves")
    info.add_argument("--all", action="store_true", help="every fact, the whole configuration included")
    completion = commands.add_parser("completion", help="a script that completes these words in a shell")
    completion.add_argument("shell", choices=["bash", "zsh"], help='for example: eval "$(exact-vae completion bash)"')
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = make_parser()
    words = sys.argv[1:] if arguments is None else arguments
    if not words:
        parser.print_help()
        return 0
    options, rest = parser.parse_known_args(words)
    if options.command == "train":  # argparse takes no second group of words behind an option
        options.overrides += rest  # options of other trainers among them, which are told what they are here
        rest = []
    if rest:
        refuse_words(parser, options, rest)
    if getattr(options, "debug", False):  # all that this package logs, the tracebacks of worded errors among it
        logger = logging.getLogger(__package__)
        logger.addHandler(logging.StreamHandler())
        logger.setLevel(logging.DEBUG)
    paused = options.command in _SHORT and gc.isenabled()
    try:
        if paused:
            gc.disable()
        return _run(options, parser)
    except KeyboardInterrupt:
        print("exact-vae: interrupted; files that were finished are whole", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read what is printed has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        from .vae_model.errors.wording import one_line

        print(f"exact-vae: {one_line(error, options.command)}", file=sys.stderr)
        return 2
    finally:
        if paused:
            gc.enable()


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """The command that was chosen; the exit code. What is told about the files that are read goes to stderr."""
    from .vae_model.notes import show_on_stderr

    show_on_stderr(not getattr(options, "quiet", True))
    ours = {"info": _info, "plan": _plan, "convert": _convert, "train": _train, "sample": run_sample}
    if options.command in ours:
        return ours[options.command](options)
    if options.command == "completion":
        print(completion_script(parser, options.shell))
        return 0
    if options.command == "evaluate":
        from .commands.evaluate import run_evaluate

        return run_evaluate(options)
    from .commands.run import run_files

    return run_files(options)


def _convert(options: argparse.Namespace) -> int:
    """One VAE into another layout."""
    from .commands.vae_option import vae_files
    from .vae_model.checkpoint.convert import convert_vae

    if options.no_clobber and options.output.exists() and not options.output.is_dir():
        written, notes = [options.output], ["kept as it was"]
    else:
        written, notes = convert_vae(
            vae_files(options.inputs),
            options.output,
            options.layout,
            options.dtype,
            options.latent_format,
            options.variant,
            options.part,
        )
    if options.json:
        paths = [str(path) for path in written]
        print(json.dumps({"command": "convert", "layout": options.layout, "outputs": paths, "notes": notes}))
    elif not options.quiet:
        ends = "".join(f"; {note}" for note in notes)
        print(f"{' + '.join(options.inputs)} -> {', '.join(map(str, written))} ({options.layout}{ends})")
    return 0


def _train(options: argparse.Namespace) -> int:
    """Train; 1 when it was stopped before its end."""
    from .vae_model.training.command import train

    lines = train(options.config, options.overrides, resume=options.resume, quiet=options.quiet)
    if lines[0] and not options.quiet:
        print(lines[0])
    for line in lines[1:]:  # that it is not done yet, which is said also when quiet
        print(f"exact-vae: {line}" if options.quiet else line, file=sys.stderr if options.quiet else sys.stdout)
    return int(len(lines) > 1)


def _info(options: argparse.Namespace) -> int:
    """Describe a VAE from names and shapes alone."""
    from .commands.vae_option import vae_files
    from .vae_model.checkpoint.describe import card, describe_vae

    facts = describe_vae(vae_files(options.inputs), options.latent_format, options.variant, options.part)
    if options.json:
        print(json.dumps(facts))
    elif not options.quiet:
        rows = dict(_flatten(facts if options.all else card(facts)))
        width = max(map(len, rows))
        for name, value in rows.items():
            print(f"{name:{width}}  {value}")
    return 0


def _plan(options: argparse.Namespace) -> int:
    """Show the plan of one size; nothing is loaded or run."""
    from .commands.vae_option import vae_files
    from .model_management.vae_plan import plan_file

    plan = plan_file(
        vae_files(options.vae),
        options.size,
        options.direction,
        memory=options.memory,
        host_memory=options.host_memory,
        dtype=options.dtype,
        device=options.device,
        variant=options.variant,
        part=options.part,
        frames=options.frames,
    )
    if options.json:
        print(plan.as_json())
    elif not options.quiet:
        print(plan.table())
    return 0


def _flatten(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts as rows: {"a": {"b": 1}} -> ("a.b", 1)."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flatten(cast("Mapping[str, Any]", value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


if __name__ == "__main__":
    sys.exit(main())
