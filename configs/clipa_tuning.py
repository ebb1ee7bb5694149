"""Short training on full-size images and texts, initialised from a run of configs/clipa.py.

  python -m clip_jax.train --config=configs/clipa_tuning.py --workdir=DIR \
      --config.train.init_from=runs/clipa --config.data.source.path=data/pairs \
      --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, the same as for the initial run. Learned position
embeddings of patches are resampled; those of the first text tokens are kept. The optimizer and the
temperature start afresh. The authors have not run this config.

Source, paper: Li, Wang, Xie 2023 and its code: 224 px, context length 32, 131 million samples,
learning rate 8e-7 per 256 examples of the batch, warm-up over a fifth of the run.
Not specified, study: the study does not train CLIPA. Here it uses 224 px, context length 16 and, as
in the paper, a tenth of the initial run's learning rate. Chosen here for both: the temperature
starts at the value that CLIP's training ends with, because the run is too short to learn it.
Expect: paper reaches 63.2% zero-shot accuracy on ImageNet.
"""

from clip_jax.configs import clipa as clipa_config

from clip_jax.config import call
from clip_jax.objectives.clip import Clip
from clip_jax.training.schedules import warmup_cosine


def get_config(settings="study"):
  """Builds the config that tunes the run with the same settings."""
  config = clipa_config.get_config(settings)
  config = clipa_config.resized(
    config, size=224, length=32 if settings == "paper" else 16, shorten="first"
  )
  config.objective = call(Clip, temperature=0.01, chunk_size=1024)
  config.optimizer.learning_rate /= 10
  config.optimizer.schedule = call(warmup_cosine, warmup=0.2)
  config.train.update(init_from="runs/clipa", samples="131M")
  return config
