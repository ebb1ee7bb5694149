"""Plans training runs for accelerators that are not attached to this machine."""
