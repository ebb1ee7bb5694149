"""A little training on whole images, from a run of configs/flip.py.

  python -m clip_jax.train --config=configs/flip_tuning.py --workdir=DIR \
      --config.train.start_from=runs/flip --config.data.source.path=data/pairs \
      --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as that of the run it starts from. Optimizer and
temperature start anew. Not run here.

From Li et al. 2023 and its code: all patches, learning rate 4e-8 for each 256 of the
batch, 128 million samples, a fifth of them warm-up.
Left open by the study: whether it tunes at all; for study the learning rate is a hundredth of the
run's, as in the paper, and the temperature starts where CLIP's ends, for there is too little time
to find it.
Expect: from half of the patches 70.1% of ImageNet zero-shot in place of 69.6% (ViT-L/16, 6.4
epochs).
"""

from pathlib import Path
import runpy

from clip_jax.config import call
from clip_jax.objectives.clip import Clip
from clip_jax.schedules import warmup_cosine

FLIP = runpy.run_path(str(Path(__file__).with_name("flip.py")))  # From wherever it is started.


def get_config(settings="study"):
  """The config of the tuning that belongs to one of the two runs."""
  config = FLIP["get_config"](settings)
  config.objective = call(Clip, temperature=0.01, block=1024)
  config.optimizer.learning_rate /= 100
  config.optimizer.schedule = call(warmup_cosine, warmup=0.2)
  config.train.update(start_from="runs/flip", samples="128M")
  return config
