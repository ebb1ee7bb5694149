"""The command `init`: from data as it is stored to a config that trains on it."""
