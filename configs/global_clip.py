"""GlobalClip: the contrast of each pair with the whole data set, for small batches.

  python -m clip_jax.train --config=configs/global_clip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is the version, v0 to v3 (the default), as in --config=configs/global_clip.py:v1. The
authors have not run this config.

Source: Wei et al. 2024 (FastCLIP): batch size 2,048 for 12 million pairs, learning rate 4e-4,
gamma 0.2 after a cosine over half of the 33 epochs, rho 8.5.
Not specified: the rest, which is as in configs/clip.py.
Differences from the publication: the temperature of v3 and the individual temperatures of v2 are
trained without an Adam of their own.
Expect: no number is published for these towers.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.errors import UserError
from clip_jax.objectives.global_clip import GlobalClip


def get_config(version="v3"):
  """Builds the config for a version of the loss."""
  if version not in ("v0", "v1", "v2", "v3"):
    raise UserError(f"configs/global_clip.py:{version} does not exist; choose from v0, v1, v2, v3.")
  config = clip_config.get_config()
  config.data.batch_size = 2048
  config.train.samples = None
  config.train.epochs = 33
  config.optimizer.learning_rate = 4e-4
  config.objective = call(
    GlobalClip, version=version, gamma=0.2, gamma_decay_epochs=16.5, rho=8.5, chunk_size=1024
  )
  return config
