"""`exact-vae evaluate VAE [VAE2 ...] --images DIR`: what it prints and how it ends."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..vae_model.errors import InputError

if TYPE_CHECKING:
    from ..vae_model.vae import VAE


def run_evaluate(options: argparse.Namespace) -> int:
    """Compare the VAEs; 1 where pictures had to be left out."""
    from ..model_management.loader import BUNDLED, load_vae
    from ..vae_model.evaluation.contact_sheet import require_sheet_name, write_sheet
    from ..vae_model.evaluation.evaluate import evaluate, find_photos
    from .jobs import open_bar
    from .vae_option import vae_files

    if options.sheet is not None:
        require_sheet_name(options.sheet)
    given = [*([name] for name in options.vaes), *([options.vae] if options.vae else [])]
    if not given:
        raise InputError("evaluate: expected VAEs, got none: name files, or bundled")
    find_photos(options.images, options.crop)  # loading takes longer
    with open_bar(1.0, "evaluate", quiet=options.quiet or options.json) as bar:

        def load(files: list[str]) -> tuple[str, VAE]:
            how: dict[str, Any] = {"variant": options.variant} if any(Path(file).is_dir() for file in files) else {}
            how |= {} if files == [BUNDLED] else {"part": options.part}
            one_or_two = files[0] if len(files) == 1 else files
            return "+".join(files), load_vae(one_or_two, dtype=options.dtype, device=options.device, **how)

        def progress(fraction: float) -> None:
            bar.n = round(fraction, 4)
            bar.refresh()

        vaes = [load(vae_files(names)) for names in given]
        result = evaluate(
            vaes, options.images, crop=options.crop, keep_samples=options.sheet is not None, progress=progress
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
