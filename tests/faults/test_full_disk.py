"""A file that cannot grow is one kind of error, and a rerun completes what is missing."""

import resource

import pytest

from clip_jax import prepare
from clip_jax.files import is_full_disk
from faults.commands import ROOT, Place
from faults.kills import contents, prepared
from faults.kinds import GROUPS, attempts
from faults.rounds import Unavailable, random_of


@pytest.fixture
def limit():
  """Sets the largest size of a file in bytes."""
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
  resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_shards_are_whole_or_missing_after_a_full_disk(tmp_path, monkeypatch, limit):
  monkeypatch.chdir(ROOT)
  run = lambda out: prepare.main(prepared(out)[2:])
  run(tmp_path / "straight")
  wanted = contents(tmp_path / "straight")
  limit(sorted(map(len, wanted.values()))[len(wanted) // 2])
  with pytest.raises(RuntimeError) as raised:
    run(tmp_path / "out")
  limit(resource.RLIM_INFINITY)
  assert is_full_disk(raised.value)
  made = contents(tmp_path / "out")
  assert made.items() < wanted.items()
  run(tmp_path / "out")
  assert contents(tmp_path / "out") == wanted


@pytest.mark.slow
@pytest.mark.parametrize("kind", GROUPS["disk"])
def test_full_disks_are_survived(kind, tmp_path):
  place = Place(tmp_path)
  for round_ in range(4):
    try:
      attempts()[kind](place, random_of(kind, 100, round_))
    except Unavailable as why:
      pytest.skip(str(why))
