"""A program in two: the prefix, once per row, and the suffix, once per row and pass."""
