"""The command that repeats the faults."""

import pytest

from clip_jax.errors import UserError
from faults.commands import TROUBLE, Place, trouble
from faults.kinds import GROUPS, TITLES, attempts
from faults.rounds import Count, Unavailable, format_counts, progress, random_of, run_rounds


def test_every_kind_has_a_title_and_a_group():
  assert attempts().keys() == TITLES.keys()
  assert sorted(kind for group in GROUPS.values() for kind in group) == sorted(TITLES)


def test_rounds_are_counted_and_what_fails_is_printed_with_the_way_to_repeat_it():
  drawn, said, counts = [], [], {}

  def sometimes(place: Place, rng):
    drawn.append(rng.random())
    assert len(drawn) != 2, "It is lost"

  def never(place, rng):
    raise Unavailable("there is no disk")

  run_rounds(
    {"kill-save": sometimes, "disk-full": never},
    {"kill-save": 3, "disk-full": 3},
    7,
    said.append,
    counts,
  )
  assert (counts["kill-save"].tried, counts["kill-save"].survived) == (3, 2)
  assert counts["disk-full"].wanted == counts["disk-full"].tried == 0
  assert "disk-full is left out: there is no disk" in said
  (failure,) = [line for line in said if "did not survive" in line]
  assert "python -m tests.faults --kinds=kill-save --rounds=1 --seed=8" in failure
  assert "It is lost" in failure
  assert random_of("kill-save", 8, 0).random() == drawn[1]  # As the line says.


def test_the_table_and_the_progress_line():
  counts = {"kill-save": Count(4, 2, 1, 30.0), "disk-full": Count(4, 0, 0, 0.0)}
  assert progress(counts) == "2/8 rounds  1 survived  time left 1 min 30 s"
  *_, kind, _, total = format_counts(counts, TITLES).splitlines()
  assert kind.split() == ["kill-save", *TITLES["kill-save"].split(), "2", "1", "30", "s"]
  assert total.split() == ["all", "2", "1", "30", "s"]


def test_errors_that_are_no_messages_are_seen():
  assert trouble("error: The disk is full\nFree some space") == ""
  for word in TROUBLE:
    assert trouble(f"step 1\n{word} x\n") == word


@pytest.mark.parametrize("flags", [["--kinds=kill-safe"], ["--rounds=-1"], ["--seed=x"]])
def test_mistakes_in_the_command_are_messages(flags):
  import importlib

  main = importlib.import_module("faults.__main__").main
  with pytest.raises(UserError, match="kill-save|not a whole number"):
    main(flags)
