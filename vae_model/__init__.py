"""Models: tensors in, tensors out. Nothing here asks for free memory, prints, or knows a host."""
