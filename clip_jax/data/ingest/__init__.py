"""Converts raw data into the shards that `prepare` writes."""
