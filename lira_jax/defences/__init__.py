"""Defences in training, each a module, chosen and combined by `[defence]` in the configuration."""
