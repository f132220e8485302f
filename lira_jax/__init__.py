"""Membership inference by likelihood ratio, with shadow models trained in parallel in JAX."""

__version__ = "0.1.0"
