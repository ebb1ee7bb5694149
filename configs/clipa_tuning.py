"""A little training on large images and whole texts, from a run of configs/clipa.py.

  python -m clip_jax.train --config=configs/clipa_tuning.py --workdir=DIR \
      --config.train.start_from=runs/clipa --config.data.source.path=data/pairs \
      --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as that of the run it starts from. Learned positions
of patches are resampled; a text's first positions are kept. Optimizer and temperature start anew.
Not run here.

From Li, Wang, Xie 2023 and its code, for paper: 224 px, 32 tokens, 131 million samples, learning
rate 8e-7 for each 256 of the batch, a fifth of the run warm-up.
Left open by the study, which does not train it: all; for study 224 px and 16 tokens, the learning
rate a tenth of the run's, as in the paper. Chosen here: the temperature starts where CLIP's ends,
for there is too little time to find it.
Expect: paper 63.2% of ImageNet zero-shot.
"""

from pathlib import Path
import runpy

from clip_jax.config import call
from clip_jax.objectives.clip import Clip
from clip_jax.schedules import warmup_cosine

CLIPA = runpy.run_path(str(Path(__file__).with_name("clipa.py")))  # From wherever it is started.


def get_config(settings="study"):
  """The config of the tuning that belongs to one of the two runs."""
  config = CLIPA["get_config"](settings)
  config = CLIPA["resized"](config, size=224, length=32 if settings == "paper" else 16,
                            shorten="first")
  config.objective = call(Clip, temperature=0.01, block=1024)
  config.optimizer.learning_rate /= 10
  config.optimizer.schedule = call(warmup_cosine, warmup=0.2)
  config.train.update(start_from="runs/clipa", samples="131M")
  return config
