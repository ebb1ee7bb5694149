"""How `prepare` makes shards of what there is."""
