"""Kernels for CPUs in C, for machines that have a compiler."""
