"""SigLIP: a sigmoid loss for every pair instead of a softmax over the batch.

  python -m clip_jax.train --config=configs/siglip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as in --config=configs/siglip.py:paper. The authors
have not run this config.

Source, study: Li, Xie, Cubuk 2024: the settings of configs/clip.py; the study itself does not train
SigLIP.
Source, both: Zhai et al. 2023: the scale starts at 10 and the bias at -10; the second-moment decay
rate is at most 0.95.
Source, paper: its public run: ViT-B/16 with an attention pooling head; a text tower of the same
size with the last token pooled and unmasked padding; embeddings of width 768; 2.4 billion samples
with batch size 16,384.
Not specified: the warm-up and decay of training from scratch, because the public code covers only a
frozen image tower; they are as in configs/clip.py. The public code initialises the bias to -2.71.
Expect: paper reaches 71.0% zero-shot accuracy on ImageNet (16 TPU v4 chips, 3 days, on WebLI).
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.errors import UserError
from clip_jax.objectives.siglip import Siglip


def get_config(settings="study"):
  """Builds the config with the settings of the study or the paper."""
  if settings not in ("study", "paper"):
    raise UserError(f"configs/siglip.py:{settings} does not exist; choose from study, paper.")
  config = clip_config.get_config()
  config.objective = call(Siglip, chunk_size=1024)
  config.optimizer.b2_cap = 0.95
  if settings == "paper":
    config.model.image.update(patch=16, pool="map")
    config.model.text.mask_padding = False
    config.model.embed_dim = 768
    config.train.samples = "2.4B"
  return config
