"""Layers, attention, convolution, patches, rematerialisation and target platforms."""
