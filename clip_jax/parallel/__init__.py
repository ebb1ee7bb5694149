"""Several devices and processes: mesh, partition rules, placement, rendezvous, preemption."""

from clip_jax.parallel.mesh import make_mesh

# What a saved config may name, see `clip_jax.config`.
PARTS = ("make_mesh",)
__all__ = ["make_mesh"]
