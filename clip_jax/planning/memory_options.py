"""Config settings to try if a step does not fit in memory, from the cheapest to the costliest."""

from collections.abc import Callable, Iterator, Sequence

from ml_collections.config_dict import ConfigDict

Setting = dict[str, object]  # {"train.microbatches": 4}


def settings_by_option(config: ConfigDict, *, shards: int) -> dict[str, list[Setting]]:
  """Returns the settings of each option, from the cheapest to the one that saves the most memory.

  Args:
    config: the config of a training run.
    shards: number of shards that the mesh splits a batch into.
  """
  rows = config.data.batch_size // shards
  pieces = config.train.microbatches
  towers = [f"model.{tower}.remat" for tower in ("image", "text") if "remat" in config.model[tower]]
  now = [config.model[path.split(".")[1]].remat for path in towers]
  levels = [
    level for level in ("dots", "full") if any(_LEVELS.index(level) > _LEVELS.index(n) for n in now)
  ]
  remat = [dict.fromkeys(towers, level) for level in levels]
  halves = [2**i for i in range(1, 20)]
  microbatches = [{"train.microbatches": pieces * n} for n in halves if rows % (pieces * n) == 0]
  fsdp = [{"mesh.data": 1, "mesh.fsdp": -1}] if config.mesh.fsdp != -1 and shards > 1 else []
  batch = [
    {"data.batch_size": config.data.batch_size // n} for n in halves if rows % (pieces * n) == 0
  ]
  both = [remat[-1] | one for one in microbatches] if remat else []
  return {
    "remat": remat,
    "microbatches": microbatches,
    "fsdp": fsdp,
    "batch": batch,
    "remat and microbatches": both,
  }


_LEVELS = ("none", "dots", "full")


def with_setting(config: ConfigDict, setting: Setting) -> ConfigDict:
  """Returns a copy of the config with some values replaced."""
  changed = config.copy_and_resolve_references()
  with changed.unlocked():
    changed.update_from_flattened_dict(setting)
  return changed


def format_flags(setting: Setting) -> str:
  """Formats a setting as command-line flags."""
  return " ".join(f"--config.{name}={value}" for name, value in setting.items())


def find_fitting(
  config: ConfigDict, attempt: Callable, *, shards: int, max_tries: int = 4
) -> Iterator[tuple]:
  """Finds the cheapest setting of each option that fits, by compiling.

  Args:
    config: the config of a training run.
    attempt: maps a config to an object with the attribute `fits`; compiles.
    shards: number of shards that the mesh splits a batch into.
    max_tries: maximum number of compilations per option.

  Yields:
    (option, setting, result of `attempt`) for each option: the first that fits, or the last tried.
  """
  alone_fits = False
  for option, settings in settings_by_option(config, shards=shards).items():
    if option == "remat and microbatches" and alone_fits:
      return
    result = None
    for setting in _evenly_spaced(settings, max_tries):
      result = option, setting, attempt(with_setting(config, setting))
      if result[2].fits:
        alone_fits = alone_fits or option != "batch"
        break
    if result:
      yield result


def _evenly_spaced(settings: Sequence, most: int) -> Sequence:
  """Returns at most `most` of the settings, evenly spaced, including the first and the last."""
  if len(settings) <= most:
    return settings
  step = (len(settings) - 1) / (most - 1)
  return [settings[round(i * step)] for i in range(most)]
