"""Kinds of ops, a file each: everything that is true of one kind alone."""
