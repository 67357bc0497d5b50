"""Self-attention over all positions: back ends, block by block, and what it takes."""
