"""Losses and accuracies of embeddings, dense or chunked; losses over a vocabulary.

A contrastive loss compares each of B rows with all B rows. With `chunk_size` = C it computes the
B x B matrix in chunks of C rows and recomputes them in the backward pass. This takes a few times
4 B (C + B / C) bytes instead of a few times 4 B^2, with the same value and gradients. Under `jit`
with rows sharded over devices, "all rows" are those of the global batch, and chunking moves no row
to another device.

Rows may belong to groups, for example those with the same caption. `groups` has an entry per row,
int [B] or [B, n]; rows with equal entries are of one group. `same_group` says what the pairs of two
different rows of one group are: further positives, nothing ("ignore"), or negatives.

Embeddings of any float dtype are cast to float32, and products are computed in full float32 even
where the device's default precision is lower (bfloat16 on TPUs, TF32 on NVIDIA GPUs): at scale 100
a relative error of 0.4% in a logit is an absolute error of 0.4.
"""

from clip_jax.losses.chunks import SameGroup
from clip_jax.losses.image_text import info_nce, sigmoid_pairs
from clip_jax.losses.relations import relation_kl
from clip_jax.losses.retrieval_accuracy import accuracies
from clip_jax.losses.two_views import nt_xent, nt_xent_accuracy
from clip_jax.losses.vocabulary import token_cross_entropy

__all__ = [
  "SameGroup",
  "accuracies",
  "info_nce",
  "nt_xent",
  "nt_xent_accuracy",
  "relation_kl",
  "sigmoid_pairs",
  "token_cross_entropy",
]
