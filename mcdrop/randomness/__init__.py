"""Noise as a function of seed, site, pass and unit."""
