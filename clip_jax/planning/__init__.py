"""What a config needs of chips that are not there."""
