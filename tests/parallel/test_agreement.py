"""Agreement between processes, with a fake key-value store in place of the others."""

import json
import time

import jax
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.parallel import agreement


class Client:
  """A fake key-value store; entries of the other processes exist from the start, or never."""

  def __init__(self, others):
    self.table = {}
    self.others = others

  def key_value_set(self, key, value):
    self.table[key] = value

  def blocking_key_value_get(self, key, milliseconds):
    name = key.rpartition("/")[2]
    if key in self.table:
      return self.table[key]
    if name in self.others:
      return json.dumps(self.others[name])
    raise jax.errors.JaxRuntimeError("DEADLINE_EXCEEDED")


@pytest.fixture
def pod(monkeypatch):
  """Makes this process number `me` of `n`; `others` are the values that the others have set."""

  def make(n, me, others):
    monkeypatch.setattr(jax, "process_count", lambda: n)
    monkeypatch.setattr(jax, "process_index", lambda: me)
    client = Client(others)
    monkeypatch.setattr(agreement, "coordination_client", lambda: client)
    return client

  return make


def test_single_process_agrees_with_itself(tmp_path):
  assert agreement.on_all_processes(lambda: 3) == 3
  assert agreement.check_agreement(None, tmp_path) == []  # The facts are not even called.
  assert not list(tmp_path.iterdir())
  assert agreement.all_gather_objects({"a": 1})[0]["a"] == 1


def test_failure_of_one_process_is_raised_on_all(pod):
  failed = {"host": "far", "problem": "no disk"}
  pod(2, 0, {"1": failed})
  with pytest.raises(UserError, match=r"Process 1 \(process 1 on far\) failed: no disk"):
    agreement.on_all_processes(lambda: 3)
  pod(2, 1, {"all": [{"host": "here", "problem": ""}, failed]})

  def fails():
    raise UserError("no disk")

  with pytest.raises(UserError, match=r"Process 1 \(process 1 on far\) failed: no disk"):
    agreement.on_all_processes(fails)
  pod(2, 0, {"1": {"host": "far", "problem": ""}})
  assert agreement.on_all_processes(lambda: 3) == 3


def test_processes_that_do_not_answer_are_named(pod):
  client = pod(4, 0, {"2": {"host": "far"}})
  with pytest.raises(UserError, match=r"Processes 1, 3 did not answer within \d+ s"):
    agreement.all_gather_objects({})
  pod(4, 2, {"all": json.loads(next(v for k, v in client.table.items() if k.endswith("all")))})
  with pytest.raises(UserError, match=r"Processes 1, 3 did not answer within \d+ s"):
    agreement.all_gather_objects({})
  pod(4, 1, {})
  with pytest.raises(UserError, match=r"Process 0 did not answer within \d+ s"):
    agreement.all_gather_objects({})


def test_different_facts_are_named(pod, tmp_path):
  other = {"host": "far", "token": "", "workdir": "shared", "config": "b", "data": "d"}
  pod(2, 0, {"1": other})
  with pytest.raises(UserError, match="differ in their config. process 1 on far: b; process 0 on"):
    agreement.check_agreement(lambda: {"config": "a", "data": "d"}, tmp_path)
  assert not list(tmp_path.iterdir())


def test_different_entry_of_a_dict_is_named(pod, tmp_path):
  other = {
    "host": "far",
    "token": "",
    "workdir": "shared",
    "config": "a digest",
    "config.steps": "5",
    "config.seed": "3",
  }
  pod(2, 0, {"1": other})
  with pytest.raises(
    UserError,
    match=r"differ in their config\.seed\. process 1 on far: 3; "
    r"process 0 on \S+: 0\. It must",
  ):
    agreement.check_agreement(lambda: {"config": {"steps": "5", "seed": "0"}}, tmp_path)


def test_unshared_workdir_is_reported(pod, tmp_path, monkeypatch):
  monkeypatch.setattr(agreement, "_FILE_TIMEOUT", 1)

  class Answers(Client):
    def key_value_set(self, key, value):
      self.mine = json.loads(value)

    def blocking_key_value_get(self, key, milliseconds):
      first = {"token": "t"} if "token" in self.mine else {"workdir": "shared"}
      return json.dumps([{"host": "near", **first}, self.mine])

  pod(2, 1, {})
  monkeypatch.setattr(agreement, "coordination_client", lambda: Answers({}))
  with pytest.raises(UserError, match="differ in their workdir.*not that of process 0"):
    agreement.check_agreement(dict, tmp_path)


def test_all_reduce_is_timed_and_clocks_are_read():
  assert 0 < agreement.all_reduce_seconds() < 60
  assert abs(float(np.max(agreement._clock_times())) - time.time()) < 5


class FewRecords:
  def __init__(self, words, broken=()):
    self.words, self.broken = words, broken

  def __len__(self):
    return len(self.words)

  def __getitem__(self, i):
    if i in self.broken:
      raise OSError("gone")
    return {"text": self.words[i], "image": np.full((2, 2, 3), i, np.uint8), "raw": b"x"}


def test_data_version_depends_on_number_and_content_of_records():
  version = agreement.data_version(FewRecords("abcd"))
  assert version.startswith("4 records, ") and version == agreement.data_version(FewRecords("abcd"))
  others = [FewRecords("abcx"), FewRecords("abcde"), FewRecords("abcd", broken=(1,))]
  assert len({version, *map(agreement.data_version, others)}) == 4
