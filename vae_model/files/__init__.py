"""Files in, tensors out: images, latents, weights, and writing that leaves no half file."""
