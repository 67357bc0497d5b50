"""The small VAE that ships with the project, with its card and the record of its training."""

from collections.abc import Sequence
from pathlib import Path

BUNDLED = "bundled"
"""Its name, where others are named by their files."""
BUNDLED_FILE = Path(__file__).resolve().parent / "exact_vae_small.safetensors"


def files_named(names: Sequence[str]) -> list[str]:
    """The same names, that of the bundled VAE replaced by its file."""
    return [str(BUNDLED_FILE) if name == BUNDLED else name for name in names]
