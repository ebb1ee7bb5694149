"""Augmentations: on the host, one image at a time, and on the device, a whole batch entry."""
