"""The kinds of faults, in groups."""

TITLES = {
  "kill-start": "a signal while a run starts",
  "kill-step": "a signal during a step",
  "kill-save": "a signal during a save",
  "kill-restore": "a signal while a run resumes",
  "kill-evaluation": "a signal during an evaluation",
  "kill-pair": "a signal to a run of two processes",
  "kill-prepare": "a signal during `prepare`",
  "kill-score": "a signal during `score`",
  "kill-study": "a signal during `study run`",
  "disk-full": "a command on a tmpfs that is too small",
  "disk-limit": "a command with a limit on the size of files",
  "damage-checkpoint": "random damage to a checkpoint folder",
  "damage-safetensors": "random damage to weights in safetensors",
  "damage-npz": "random damage to arrays, weights and scores in npz",
  "damage-manifest": "random damage to a manifest.json",
  "damage-config": "random damage to a saved config",
  "damage-parquet": "random damage to a Parquet file",
  "damage-arrayrecord": "random damage to an ArrayRecord shard",
  "damage-tar": "random damage to a tar, plain or compressed",
  "long-run": "20,000 steps with flat memory, threads and open files",
}
GROUPS = {
  group: [kind for kind in TITLES if kind.startswith(prefix)]
  for group, prefix in {
    "kills": "kill-",
    "disk": "disk-",
    "damage": "damage-",
    "long": "long-",
  }.items()
}


def attempts():
  """Functions that try a fault, by kind."""
  from faults import damage, full_disk, kills, long_run

  return {
    "kill-start": kills.during_start,
    "kill-step": kills.during("step"),
    "kill-save": kills.during("save"),
    "kill-restore": kills.during_restore,
    "kill-evaluation": kills.during("evaluation"),
    "kill-pair": kills.of_two_processes,
    "kill-prepare": kills.of_prepare,
    "kill-score": kills.of_score,
    "kill-study": kills.of_study_run,
    "disk-full": full_disk.on_a_small_disk,
    "disk-limit": full_disk.with_a_limit,
    "long-run": long_run.of_many_steps,
    **{f"damage-{form}": damage.attempt(form) for form in damage.FORMS},
  }
