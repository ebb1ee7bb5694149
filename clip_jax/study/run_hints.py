"""Hints about a run's hyperparameters, from the rule that public sweeps support."""

from clip_jax.costs.flops import count_parameters
from clip_jax.study import hyperparameters
from clip_jax.training.setup import TrainSetup


def hyperparameter_hints(setup: TrainSetup) -> list[str]:
  """Lines for a run with far fewer steps or a far shorter warm-up than in public runs that worked.

  Runs of less than a million samples, about which the sweeps say nothing, get none.
  """
  batch = setup.config.data.batch_size
  schedule = setup.config.optimizer.get("schedule") or {}
  warmup = schedule.get("warmup")
  if warmup is None:
    return []
  steps = round(warmup * setup.total_steps) if isinstance(warmup, float) and warmup < 1 else warmup
  found = hyperparameters.warnings(
    setup.total_steps * batch, count_parameters(setup.state.params), batch, int(steps)
  )
  return [f"hint       {line}" for line in found]
