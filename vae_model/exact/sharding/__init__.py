"""Ranks that share an image's rows: who computes which, and what they send each other."""
