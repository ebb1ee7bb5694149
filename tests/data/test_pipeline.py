"""Batches are identical for any number of hosts, threads and workers, and from any start step."""

import itertools
import os
from pathlib import Path
import pickle
import subprocess
import sys
import time

import numpy as np
import pytest

import clip_jax
from clip_jax.data import ArrayRecord, Examples, Subset, batches
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.records import write
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.sources.shapes import Shapes
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError

VIEWS = Views({"image": ImageView(RandomResizedCrop(16), [HorizontalFlip()])}, SentencePiece())
EXAMPLES = Examples(OpenClipart("val", ("caption", "title")), VIEWS, seed=3)


def first(examples, steps, **options):
  stream = batches(examples, **options)
  taken = list(itertools.islice(stream, steps))
  stream.close()
  return taken


def assert_equal(one, other):
  assert len(one) == len(other)
  for a, b in zip(one, other):
    assert a.keys() == b.keys()
    for name in a:
      assert a[name].dtype == b[name].dtype
      np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize("rows", [[1, 3, 4, 6], [0, 1, 2, 3, 4, 5, 6, 7], [5]])
def test_a_host_can_read_arbitrary_rows_of_every_batch(straight, rows):
  ours = first(EXAMPLES, 3, batch_size=8, start=2, rows=np.array(rows), threads=2)
  assert_equal(ours, [{n: x[rows] for n, x in batch.items()} for batch in straight[2:5]])


@pytest.fixture(scope="module")
def straight():
  return first(EXAMPLES, 8, batch_size=8, threads=0)


def test_a_batch_holds_the_examples_of_its_positions(straight):
  for step, batch in enumerate(straight):
    rows = sorted((EXAMPLES[step * 8 + row] for row in range(8)), key=lambda row: row["index"])
    assert tuple(batch) and set(batch) == set(EXAMPLES.outputs)
    for name in batch:
      np.testing.assert_array_equal(batch[name], np.stack([row[name] for row in rows]))
  assert straight[0]["image"].shape == (8, 16, 16, 3) and straight[0]["image"].dtype == np.uint8
  assert straight[0]["tokens"].shape == (8, 16) and straight[0]["tokens"].dtype == np.int32
  assert straight[0]["index"].dtype == straight[0]["damaged"].dtype == np.int64
  assert straight[0]["replaced"].dtype == np.int32


@pytest.mark.parametrize("hosts", [1, 2, 4])
@pytest.mark.parametrize("threads", [0, 16])
def test_the_global_batch_is_the_same_on_any_number_of_hosts_and_threads(straight, hosts, threads):
  parts = [
    first(EXAMPLES, 8, batch_size=8, host=host, hosts=hosts, threads=threads)
    for host in range(hosts)
  ]
  together = [
    {name: np.concatenate([part[name] for part in step]) for name in step[0]}
    for step in zip(*parts)
  ]
  assert_equal(together, straight)


def test_workers_make_the_same_batches(straight):
  made = first(EXAMPLES, 5, batch_size=8, start=3, host=1, hosts=2, threads=2, workers=2)
  assert_equal(made, [{name: batch[name][4:] for name in batch} for batch in straight[3:]])
  assert all(type(values) is np.ndarray for values in made[0].values())


@pytest.mark.parametrize("k", [1, 5])
def test_starting_at_a_later_step_gives_the_remaining_batches(straight, k):
  assert_equal(first(EXAMPLES, 8 - k, batch_size=8, start=k), straight[k:])


def test_another_batch_size_continues_after_what_was_seen():
  """Three steps of 8 and then batches of 6 consist of the same examples as one batch of 36."""
  (all_at_once,) = first(EXAMPLES, 1, batch_size=36)
  made = first(EXAMPLES, 3, batch_size=8) + first(EXAMPLES, 2, batch_size=6, start=3, seen=24)
  indices = np.concatenate([batch["index"] for batch in made])
  assert sorted(indices) == sorted(all_at_once["index"])
  rows = {int(i): row for i, row in zip(all_at_once["index"], all_at_once["tokens"])}
  for batch in made:
    for i, row in zip(batch["index"], batch["tokens"]):
      np.testing.assert_array_equal(row, rows[int(i)])


def test_starting_at_a_late_step_is_fast():
  examples = Examples(Shapes(10**9), VIEWS)
  begin = time.process_time()
  (batch,) = first(examples, 1, batch_size=8, start=10_000_000, threads=0)
  assert time.process_time() - begin < 1
  assert batch["index"].tolist() == sorted(examples.index(80_000_000 + row) for row in range(8))


def test_every_epoch_has_each_record_once_in_a_new_order():
  examples = Examples(Shapes(97), VIEWS)
  epochs = [[examples.index(epoch * 97 + i) for i in range(97)] for epoch in range(4)]
  assert all(sorted(epoch) == list(range(97)) for epoch in epochs)
  assert len({tuple(epoch) for epoch in epochs}) == 4
  assert [Examples(Shapes(97), VIEWS, seed=1).index(i) for i in range(97)] != epochs[0]


def test_indices_agrees_with_index():
  examples = Examples(Shapes(97), VIEWS, seed=3)
  positions = np.arange(50, 400)
  assert examples.indices(positions).tolist() == [examples.index(p) for p in positions.tolist()]


def test_each_host_reads_its_own_part_of_the_files_in_order():
  """Records which indices are read below a subset in random order."""

  class Recording(Shapes):
    def __getitem__(self, i):
      self.read.append(i)
      return super().__getitem__(i)

  halves = []
  for host in range(2):
    source = Recording(10_000)
    source.read = []
    first(Examples(Subset(source, 9_000), VIEWS), 1, batch_size=64, host=host, hosts=2, threads=0)
    assert source.read == sorted(source.read) and len(source.read) == 32
    halves.append(source.read)
  assert halves[0][-1] < halves[1][0]


def test_augmentation_differs_between_epochs():
  examples = Examples(Shapes(1), VIEWS)
  images = {examples[position]["image"].tobytes() for position in range(8)}
  assert len(images) > 4


def test_a_subset_is_a_source():
  examples = Examples(Subset(Shapes(1000), 10), VIEWS)
  assert sorted(int(examples[i]["index"]) for i in range(10)) == list(range(10))


@pytest.fixture
def damaged(tmp_path):
  """41 records; the images of records 4, 20 and 33 are truncated."""
  source = OpenClipart("val")
  records = [source[i] for i in range(41)]
  for i in (4, 20, 33):
    records[i]["image"] = records[i]["image"][:300]
  write(records, str(tmp_path / "a.array_record"))
  return Examples(ArrayRecord(str(tmp_path)), VIEWS)


def test_damaged_records_are_replaced_and_reported(damaged):
  seen = first(damaged, 41, batch_size=8, threads=0)  # Eight epochs.
  broken = np.concatenate([batch["damaged"] for batch in seen])
  replaced = np.concatenate([batch["replaced"] for batch in seen])
  index = np.concatenate([batch["index"] for batch in seen])
  wanted = np.concatenate(
    [sorted(damaged.index(8 * step + row) for row in range(8)) for step in range(41)]
  )
  assert not set(index) & {4, 20, 33}
  np.testing.assert_array_equal(replaced > 0, np.isin(wanted, [4, 20, 33]))
  np.testing.assert_array_equal(broken, np.where(replaced > 0, wanted, -1))
  np.testing.assert_array_equal(index[replaced == 0], wanted[replaced == 0])
  assert [np.sum(broken == i) for i in (4, 20, 33)] == [8, 8, 8]


def test_replacements_are_deterministic(damaged):
  straight = first(damaged, 6, batch_size=8, threads=0)
  assert sum((batch["replaced"] > 0).sum() for batch in straight) > 0
  assert_equal(first(damaged, 6, batch_size=8, threads=8), straight)
  assert_equal(first(damaged, 4, batch_size=8, start=2, workers=1), straight[2:])
  assert_equal(
    first(damaged, 3, batch_size=8, start=2, host=1, hosts=2),
    [{name: batch[name][4:] for name in batch} for batch in straight[2:5]],
  )
  again = pickle.loads(pickle.dumps(damaged))
  assert_equal(first(again, 6, batch_size=8, threads=0), straight)


def test_replacements_rarely_repeat_within_a_batch(damaged):
  for start in range(0, 41 * 8, 8):
    rows = [damaged[position] for position in range(start, start + 8)]
    new = [int(row["index"]) for row in rows if row["replaced"]]
    kept = [int(row["index"]) for row in rows if not row["replaced"]]
    assert len(set(new) & set(kept)) <= 1


def test_many_unreadable_records_in_a_row_raise(tmp_path):
  write([{"image": b"no image", "text": "x"}] * 3, str(tmp_path / "a.array_record"))
  examples = Examples(ArrayRecord(str(tmp_path)), VIEWS, tries=7)
  with pytest.raises(UserError, match="7 records in a row cannot be read.*UnidentifiedImageError"):
    examples[0]


def test_configuration_errors_are_not_treated_as_damage(tmp_path):
  write([{"jpg": b"", "text": "x"}] * 3, str(tmp_path / "a.array_record"))
  with pytest.raises(UserError, match="A record has no 'image'; it has 'jpg', 'text'"):
    Examples(ArrayRecord(str(tmp_path)), VIEWS)[0]


class Empty:
  def __len__(self):
    return 0


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: Examples(Empty(), VIEWS), "Empty has no records"),
    (lambda: Examples(Shapes(3), VIEWS, seed=-1), "seed -1 is negative"),
    (
      lambda: batches(EXAMPLES, batch_size=100, hosts=8),
      "batch_size 100 cannot be split over 8 hosts; nearest valid: 96, 104",
    ),
    (lambda: batches(EXAMPLES, batch_size=3, hosts=8), "nearest valid: 8. Set"),
    (lambda: batches(EXAMPLES, batch_size=0), "batch_size 0 cannot be split"),
    (lambda: batches(EXAMPLES, batch_size=8, host=2, hosts=2), "host 2 is out of range"),
    (lambda: batches(EXAMPLES, batch_size=8, start=-1), "start -1 is negative"),
    (lambda: batches(EXAMPLES, batch_size=8, seen=-1), "seen -1 is negative"),
    (lambda: batches(EXAMPLES, batch_size=8, workers=-1), "workers -1 is negative"),
    (lambda: batches(EXAMPLES, batch_size=8, threads=-1), "threads -1 is negative"),
  ],
)
def test_invalid_arguments_raise(make, message):
  with pytest.raises(UserError, match=message):
    make()


def test_workers_still_running_at_exit_end_quietly(tmp_path):
  script = tmp_path / "script.py"
  script.write_text("""
from clip_jax.data import Examples, batches
from clip_jax.data.crops import Resize
from clip_jax.data.sources.shapes import Shapes
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views

if __name__ == "__main__":
  views = Views({"image": ImageView(Resize(64))}, SentencePiece())
  stream = batches(Examples(Shapes(100), views), batch_size=32, workers=2)
  kept = [next(stream) for _ in range(3)]
  print(len(kept))
""")
  path = str(Path(clip_jax.__file__).parent.parent)
  done = subprocess.run(
    [sys.executable, script],
    capture_output=True,
    text=True,
    timeout=120,
    env={**os.environ, "PYTHONPATH": path},
  )
  assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")


def test_importing_the_pipeline_does_not_import_tensorflow():
  code = "import sys, clip_jax.data; sys.exit('tensorflow' in sys.modules)"
  path = str(Path(clip_jax.__file__).parent.parent)
  subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
