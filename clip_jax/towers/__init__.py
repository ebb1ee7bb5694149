"""Images and texts to features."""
