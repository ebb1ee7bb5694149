"""Image augmentations that run on the device, before the towers."""
