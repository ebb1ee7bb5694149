"""Checkpoints of other libraries: one file per format, with one name table for both directions."""
