"""The input pipeline: sources, subsets, per-record preprocessing, shuffling and batching."""

from clip_jax.data.pipeline import Examples, batches
from clip_jax.data.quality import Quality
from clip_jax.data.records import ArrayRecord
from clip_jax.data.scores import read_scores, write_scores
from clip_jax.data.subset import Subset

__all__ = ["ArrayRecord", "Examples", "Quality", "Subset", "batches", "read_scores",
           "write_scores"]
