"""Plans training runs for accelerators that are not attached to this machine."""

from clip_jax.planning.placeholder import PlaceholderSource

# What a saved config may name, see `clip_jax.config`.
PARTS = ("PlaceholderSource",)
__all__ = ["PlaceholderSource"]
