"""`exact-vae evaluate VAE [VAE2 ...] --images DIR`: what it prints and how it ends."""

from __future__ import annotations

import argparse
import json
import sys

from ..vae_model.errors import InputError


def run_evaluate(options: argparse.Namespace) -> int:
    """Compare the VAEs; 1 where pictures had to be left out."""
    from ..vae_model.evaluation.contact_sheet import require_sheet_name, write_sheet
    from ..vae_model.evaluation.evaluate import evaluate
    from .bar import open_bar
    from .vae_option import vae_files

    if options.sheet is not None:
        require_sheet_name(options.sheet)
    given = [*([name] for name in options.vaes), *([options.vae] if options.vae else [])]
    names = [files[0] if len(files) == 1 else files for files in map(vae_files, given)]
    if not names:
        raise InputError("evaluate: expected VAEs, got none: name files, or bundled")
    with open_bar(1.0, "evaluate", quiet=options.quiet or options.json) as bar:

        def progress(fraction: float) -> None:
            bar.n = round(fraction, 4)
            bar.refresh()

        result = evaluate(
            names,
            options.images,
            crop=options.crop,
            dtype=options.dtype,
            device=options.device,
            keep_samples=options.sheet is not None,
            variant=options.variant,
            part=options.part,
            progress=progress,
        )
    if options.sheet is not None:
        write_sheet(result, options.sheet)
    for name, reason in result.skipped.items():
        print(f"exact-vae: {name} skipped: {reason}", file=sys.stderr)
    if options.json:
        sheet = None if options.sheet is None else str(options.sheet)
        print(json.dumps({"command": "evaluate", "sheet": sheet, **result.as_dict()}))
    elif not options.quiet:
        print(result.table())
    return 1 if result.skipped else 0
