"""Generative metrics on features: every file is one metric, from (N, D) features to a number. Pure: torch and numpy."""
