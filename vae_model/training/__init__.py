"""Training and judging of autoencoders. Nothing in this folder is imported when a VAE is used."""
