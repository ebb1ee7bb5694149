"""The fields of a config that have changed since a run last started, and whether it can resume."""

from collections.abc import Mapping
from pathlib import Path

from clip_jax.errors import UserError
from clip_jax.training.history import Record, is_same_data

# Fields of a model that change how it is computed, not what.
_COMPUTATION = ("attention", "chunk_size", "dtype", "remat", "unroll")
# Options of sources that change how records are read; the fingerprint shows if it changes them.
_READING = ("check", "follow_links", "groups")
_WAY_OUT = (
  "Train in another --workdir, where --config.train.init_from={} starts from the parameters of "
  "this run; or resume with the values that it had."
)


def changed_fields(before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, tuple[str, str]]:
  """Compares two configs: field -> its old and new value as JSON, "(none)" where it is missing.

  Args:
    before, now: values as JSON by field, from `config.saved_entries`. Of a call that is in one of
      them only, the result has one entry.
  """
  changes = {}
  for name in sorted({*before, *now}):
    old, new = before.get(name), now.get(name)
    if old == new:
      continue
    if old is None or new is None:
      name = _outermost(name, before if old is None else now)
      shown = f"{(now if old is None else before).get(f'{name}.fn', old or new)}"
      old, new = ("(none)", shown) if old is None else (shown, "(none)")
    changes.setdefault(name, (old, new))
  return changes


def _outermost(name, fields):
  """The shortest prefix of a field's name that is not a part of another config."""
  parts = name.split(".")
  for n in range(1, len(parts)):
    prefix = ".".join(parts[:n])
    if not any(other == prefix or other.startswith(f"{prefix}.") for other in fields):
      return prefix
  return name


def check_data(
  changes: Mapping[str, tuple[str, str]], past: Record | None, now: Record, workdir: Path
) -> None:
  """Checks that a run that resumes reads the data and the tokens that it was trained on.

  Args:
    changes: fields of the config that have changed.
    past: what history.json says; None for a run from before there was one.
    now: what the run is about to write there.
    workdir: the run's folder.

  Raises:
    UserError: it does not; the message names the fields.
  """
  for what, same, sections in (
    ("tokenizer", not past or past.tokenizer == now.tokenizer, ("data.views.tokenizer",)),
    ("training data", not past or is_same_data(past.data, now.data), ("data.source", "data.size")),
  ):
    here = {
      name: values
      for name, values in changes.items()
      if any(name == section or name.startswith(f"{section}.") for section in sections)
    }
    wrong = {
      name: values
      for name, values in here.items()
      if not _is_path(*values) and name.rpartition(".")[2] not in _READING
    }
    if wrong or not same:
      raise UserError(
        f"The run in {workdir} was trained with another {what}"
        + (f": {_listed(wrong or here)}. " if here else ", although no field of it has changed. ")
        + _WAY_OUT.format(workdir)
      )


def check_model(changes: Mapping[str, tuple[str, str]], workdir: Path) -> None:
  """Raises UserError if a run that resumes would compute another model with its parameters."""
  wrong = {
    name: values
    for name, values in changes.items()
    if name.startswith("model.") and name.rpartition(".")[2] not in _COMPUTATION
  }
  if wrong:
    raise UserError(
      f"The run in {workdir} has another model: {_listed(wrong)}. {_WAY_OUT.format(workdir)}"
    )


def _is_path(old, new):
  """Whether both values are strings, and one of them is a path: its content shows what changed."""
  return all(x.startswith('"') for x in (old, new)) and any("/" in x for x in (old, new))


def _listed(changes):
  return ", ".join(f"{name}: {old} -> {new}" for name, (old, new) in changes.items())
