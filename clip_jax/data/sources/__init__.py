"""Sources of training records, one module per format."""
