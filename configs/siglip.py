"""SigLIP: a sigmoid for every pair in place of the softmax over the batch.

  python -m clip_jax.train --config=configs/siglip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as in --config=configs/siglip.py:paper. Not run here.

From Li, Xie, Cubuk 2024, for study: configs/clip.py, whose set-up SigLIP shares; the study does not
train it itself.
From Zhai et al. 2023 for both: the scale starts at 10 and the bias at -10, the second moment
forgets with at most 0.95. For paper: ViT-B/16 with an attention head, a text tower of the same size
whose last token is pooled and whose padding is not hidden, embeddings of 768, 2.4 billion samples
in batches of 16,384, its public run.
Left open by what is public (code for a frozen image tower alone): the warm-up and decay of a run
from scratch; as in configs/clip.py. That code starts the bias at -2.71.
Expect: paper 71.0% of ImageNet zero-shot (16 TPU v4 chips, 3 days, on WebLI).
"""

from pathlib import Path
import runpy

from clip_jax.config import call
from clip_jax.errors import UserError
from clip_jax.objectives.siglip import Siglip

BASE = runpy.run_path(str(Path(__file__).with_name("clip.py")))  # From wherever it is started.


def get_config(settings="study"):
  """The config of a run at the study's settings or of the paper's."""
  if settings not in ("study", "paper"):
    raise UserError(f"configs/siglip.py:{settings} does not exist; there are study, paper.")
  config = BASE["get_config"]()
  config.objective = call(Siglip, block=1024)
  config.optimizer.b2_cap = 0.95
  if settings == "paper":
    config.model.image.update(patch=16, pool="map")
    config.model.text.mask_padding = False
    config.model.embed = 768
    config.train.samples = "2.4B"
  return config
