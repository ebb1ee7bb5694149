"""Mixes of models in the space of their parameters: WiSE-FT and soups."""
