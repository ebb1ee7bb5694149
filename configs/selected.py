"""Selected: CLIP on the fifth of each batch from which the model learns most (JEST).

  clip-jax embed --model=REFERENCE --source=SOURCE --what=embeddings --out=STORE
  python -m clip_jax.train --config=configs/selected.py:STORE --workdir=DIR \
      --config.data.source.source.path=SOURCE --config.data.views.tokenizer.model=data/32k.model

The argument is a folder of the embeddings of a reference model, as a small model trained on good
data. Without an argument, the hardest rows are selected instead, which needs no reference. A step
embeds 81,920 pairs and trains on 16,384 of them. The authors have not run this config.

Source: Evans et al. 2024 (JEST): a fifth of the batch in 16 chunks, by the loss of the model minus
that of the reference model.
Not specified: the rest, which is as in configs/clip.py.
Differences from the publication: the scores are those of InfoNCE, not of the sigmoid loss; the
batch is embedded at full resolution and in full precision.
Expect: no number is published for these towers and this data.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.sources.with_embeddings import WithEmbeddings
from clip_jax.data.stored_views import StoredViews
from clip_jax.objectives.selected import Selected


def get_config(store=""):
  """Builds the config for the embeddings of a reference model in a folder."""
  config = clip_config.get_config()
  config.data.batch_size = 81_920
  config.objective = call(
    Selected, pairs=config.objective, fraction=0.2, score="learnable" if store else "hard"
  )
  if store:
    config.data.source = call(WithEmbeddings, source=config.data.source, path=store)
    config.data.views = call(
      StoredViews,
      tokenizer=config.data.views.tokenizer,
      image="pixels",
      crop=call(RandomResizedCrop, size=224),
      teacher=True,
    )
  return config
