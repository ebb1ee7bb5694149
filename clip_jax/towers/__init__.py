"""Image and text towers, which map images and texts to features."""
