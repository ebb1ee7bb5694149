"""What runs on the device before the towers."""
