"""Training of the bundled VAE. Nothing in this folder is imported when a VAE is used."""
