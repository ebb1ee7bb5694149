"""Grids of the study, and recipes by name."""
