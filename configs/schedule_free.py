"""Schedule-free AdamW: CLIP in a run that may be stopped or prolonged at any time.

  python -m clip_jax.train --config=configs/schedule_free.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The authors have not run this config.

Source: Defazio et al. 2024: the average of the iterates is evaluated, the schedule only warms up,
and the learning rate is 1 to 10 times that of a cosine schedule (here twice).
Not specified: values for CLIP. Here the strength of the decay is that of configs/clip.py, as is the
rest.
Expect: no number is published for these towers.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.training.schedule_free import schedule_free_adamw
from clip_jax.training.schedules import warmup_constant


def get_config():
  """Builds the config."""
  config = clip_config.get_config()
  config.optimizer = call(
    schedule_free_adamw,
    learning_rate=2e-3,
    weight_decay=0.05,
    grad_clip_norm=1.0,
    schedule=call(warmup_constant, warmup=config.optimizer.schedule.warmup),
  )
  config.train.evaluate_ema = True
  return config
