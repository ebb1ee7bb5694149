"""Writes the outputs of a model's towers for the records of a source."""
