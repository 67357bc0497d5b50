"""The small VAE that ships with the project, with its card and the record of its training."""

from pathlib import Path

BUNDLED_FILE = Path(__file__).resolve().parent / "exact_vae_small.safetensors"
