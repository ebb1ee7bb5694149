"""A minimal run for several processes. The argument is the number of steps.

It uses plain gradient descent, because Adam amplifies rounding differences between numbers of
devices, and shards the parameters, so that checkpoints have to reassemble them.
"""

import optax

from clip_jax.config import call
from clip_jax.parallel.mesh import make_mesh
from run_config import get_config as run_config


def get_config(steps="4"):
  config = run_config(steps)
  config.optimizer = call(optax.sgd, learning_rate=0.1)
  config.mesh = call(make_mesh, fsdp=2)
  config.evaluators = config.final_evaluators = {}
  config.train.log_every = 1
  config.train.save_every = 2
  return config
