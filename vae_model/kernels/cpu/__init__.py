"""Kernels for processors in C, for machines that have a compiler."""
