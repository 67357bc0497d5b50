"""What NVIDIA GPUs do with kernels of our own where PyTorch's operations leave most of their bandwidth unused."""
