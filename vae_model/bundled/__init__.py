"""The small VAE that ships with the project: `exact_vae_small.safetensors` and its card."""
