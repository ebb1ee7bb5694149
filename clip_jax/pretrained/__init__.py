"""Other libraries' checkpoints: one file per format, one table of names for both directions."""
