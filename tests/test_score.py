"""Tests of scoring: similarities, damaged records, resuming, sharding, and the command."""

from pathlib import Path
import sys

import jax
import numpy as np
import pyarrow as pa
from pyarrow import parquet as pq
import pytest

from clip_jax import score as command
from clip_jax.cli.progress import Progress
from clip_jax.config import call, from_json, to_json
from clip_jax.data import ScoreFilter, Subset, read_scores
from clip_jax.data.crops import Resize
from clip_jax.data.records import write
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.errors import UserError
from clip_jax.inference.embedder import Embedder
from clip_jax.inference.similarity import model_fingerprint, score, similarities
from clip_jax.parallel.mesh import make_mesh
from clip_jax.training import loop as loop_lib, setup as setup_lib, startup
from mutations import damaged_json
from run_config import get_config
from tiny import SIZE, learner, text_tower

FIELDS = ("caption", "title")


def embedder(seed=0, batch_size=16):
  model = learner(text=text_tower(vocab_size=4096), seed=seed).model
  return Embedder(
    model,
    Resize(SIZE),
    SentencePiece(context_length=8),
    batch_size=batch_size,
    threads=2,
    mesh=make_mesh(devices=jax.devices()[:1]),
  )


EMBEDDER = embedder()
SOURCE = Subset(OpenClipart("val", FIELDS), 50)
quiet = lambda line: None


def expected(source, join):
  """Scores one record at a time."""
  made = []
  for i in range(len(source)):
    record = source[i]
    texts = [record["text"]] if isinstance(record["text"], str) else record["text"]
    z = EMBEDDER.encode_image([record["image"]])[0]
    made.append(join([float(z @ t) for t in EMBEDDER.encode_text(texts)]))
  return made


class Damaged:
  """A source with records that cannot be read or decoded, or have no valid text."""

  def __len__(self):
    return len(SOURCE)

  def __getitem__(self, i):
    if i == 3:
      raise OSError("hash mismatch")
    changes = {7: {"image": b"no image"}, 21: {"text": []}, 22: {"text": [None]}}
    return {**SOURCE[i], **changes.get(i, {})}


@pytest.mark.parametrize("captions, join", [("mean", np.mean), ("max", max)])
def test_a_score_is_the_cosine_similarity_of_image_and_captions(tmp_path, captions, join):
  got = score(EMBEDDER, SOURCE, tmp_path / "s.npz", captions=captions, chunk=20, say=quiet)
  assert got.dtype == np.float32
  np.testing.assert_allclose(got, expected(SOURCE, join), atol=1e-5)
  header = read_scores(tmp_path / "s.npz")[1]
  assert header["model_fingerprint"] == model_fingerprint(EMBEDDER.model)
  assert header["captions"] == captions and header["damaged"] == 0
  assert [p.name for p in tmp_path.iterdir()] == ["s.npz"]


def test_a_single_text_need_not_be_a_list(tmp_path):
  source = Subset(OpenClipart("val"), 9)
  got = score(EMBEDDER, source, tmp_path / "s.npz", say=quiet)
  np.testing.assert_allclose(got, expected(source, np.mean), atol=1e-5)


def test_records_may_have_different_numbers_of_captions():
  images = np.stack([Resize(SIZE)(SOURCE[i]["image"]) for i in range(3)])
  texts = [["a dog"], ["a cat", "two cats", "a flag"], ["a tree", "a dog"]]
  got = similarities(EMBEDDER, images, texts)
  for image, own, one in zip(images, texts, got):
    each = EMBEDDER.encode_text(own) @ EMBEDDER.encode_image(image[None])[0]
    assert one == pytest.approx(each.mean(), abs=1e-5)


def test_damaged_records_get_nan_and_are_counted_and_dropped(tmp_path):
  said = []
  got = score(EMBEDDER, Damaged(), tmp_path / "s.npz", chunk=20, say=said.append)
  assert np.flatnonzero(np.isnan(got)).tolist() == [3, 7, 21, 22]
  whole = expected(SOURCE, np.mean)
  good = ~np.isnan(got)
  np.testing.assert_allclose(got[good], np.array(whole)[good], atol=1e-5)
  assert read_scores(tmp_path / "s.npz")[1]["damaged"] == 4
  assert "4 records could not be read and have no score (NaN): number 3, 7, 21, 22" in said[-1]
  assert "damaged 4" in said[0]
  kept = ScoreFilter(Damaged(), str(tmp_path / "s.npz"), keep="top 100%")
  assert len(kept) == 46 and not {3, 7, 21, 22} & set(kept.indices().tolist())


class Killed(Exception):
  pass


class InterruptedEmbedder(Embedder):
  """An embedder that counts its calls and raises `Killed` after `last` of them."""

  def __init__(self, last=10**9):
    self.__dict__.update(EMBEDDER.__dict__)
    self.last, self.calls = last, 0

  def encode_image(self, images):
    self.calls += 1
    if self.calls > self.last:
      raise Killed
    return super().encode_image(images)


def test_a_killed_run_resumes(tmp_path):
  straight = score(EMBEDDER, SOURCE, tmp_path / "a.npz", chunk=8, say=quiet)
  for last in (2, 1):
    with pytest.raises(Killed):
      score(InterruptedEmbedder(last), SOURCE, tmp_path / "b.npz", chunk=8, say=quiet)
  assert not (tmp_path / "b.npz").exists()
  said, rest = [], InterruptedEmbedder()
  resumed = score(rest, SOURCE, tmp_path / "b.npz", chunk=8, say=said.append)
  np.testing.assert_array_equal(resumed, straight)
  assert rest.calls == 7 - 3 and "3 of 7 chunks are already done" in said[0]
  assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_a_complete_file_is_not_recomputed(tmp_path):
  first = np.array(score(EMBEDDER, SOURCE, tmp_path / "s.npz", say=quiet))
  said = []
  np.testing.assert_array_equal(
    score(InterruptedEmbedder(0), SOURCE, tmp_path / "s.npz", say=said.append), first
  )
  assert "is already complete" in said[0]


def test_machines_share_the_work_and_the_last_one_merges_it(tmp_path):
  straight = score(EMBEDDER, SOURCE, tmp_path / "a.npz", chunk=8, say=quiet)
  said = []
  for i in (2, 0):
    made = score(EMBEDDER, SOURCE, tmp_path / "b.npz", shard=(i, 3), chunk=8, say=said.append)
    assert made is None
  assert "Shard 0/3 is done. 2 of 7 chunks of other shards are missing" in said[-1]
  made = score(EMBEDDER, SOURCE, tmp_path / "b.npz", shard=(1, 3), chunk=8, say=quiet)
  np.testing.assert_array_equal(made, straight)


def test_another_machine_may_merge_the_chunks_first(tmp_path, monkeypatch):
  straight = np.array(score(EMBEDDER, SOURCE, tmp_path / "a.npz", chunk=8, say=quiet))

  def beaten(*arguments, **facts):
    (tmp_path / "a.npz").rename(tmp_path / "b.npz")
    raise FileNotFoundError

  monkeypatch.setattr("clip_jax.inference.similarity.write_scores", beaten)
  said = []
  made = score(EMBEDDER, SOURCE, tmp_path / "b.npz", chunk=8, say=said.append)
  np.testing.assert_array_equal(made, straight)
  assert "was written by another machine" in said[-1]


def test_a_chunk_deleted_by_somebody_else_raises(tmp_path, monkeypatch):
  def removed(*arguments, **facts):
    raise FileNotFoundError("000002.npy")

  monkeypatch.setattr("clip_jax.inference.similarity.write_scores", removed)
  with pytest.raises(FileNotFoundError, match="000002.npy"):
    score(EMBEDDER, SOURCE, tmp_path / "s.npz", chunk=8, say=quiet)


def test_the_model_fingerprint_depends_on_the_parameters():
  assert model_fingerprint(embedder().model) == model_fingerprint(EMBEDDER.model)
  assert model_fingerprint(embedder(seed=1).model) != model_fingerprint(EMBEDDER.model)


def test_progress_estimates_the_time_left():
  now, said = [0.0], []
  progress = Progress(1000, said.append, "records", clock=lambda: now[0])
  for _ in range(10):
    now[0] += 4
    progress.add(100, 1)
  assert said[0] == "300/1,000 records  30%  25 records/s  damaged 3  time left 28 s"
  assert (
    said[-1] == "1,000/1,000 records  100%  25 records/s  damaged 10  took 40 s" and len(said) == 4
  )


def test_scores_of_another_task_are_not_overwritten(tmp_path):
  path = tmp_path / "s.npz"
  score(EMBEDDER, SOURCE, path, say=quiet)
  for model, source, options, message in (
    (embedder(1), SOURCE, {}, "s.npz exists and contains scores of another model"),
    (EMBEDDER, SOURCE, dict(captions="max"), "scores with another --captions"),
    (EMBEDDER, Subset(SOURCE, 40), {}, r"of another source \(50 records, here 40\)"),
    (embedder(1), Damaged(), {}, "of another model and of another source"),
  ):
    with pytest.raises(UserError, match=message):
      score(model, source, path, say=quiet, **options)
  score(EMBEDDER, SOURCE, tmp_path / "t.npz", shard=(0, 3), chunk=8, say=quiet)
  with pytest.raises(UserError, match="from an earlier run and contains scores of another"):
    score(embedder(1), SOURCE, tmp_path / "t.npz", chunk=8, say=quiet)
  with pytest.raises(UserError, match="with another chunk size"):
    score(EMBEDDER, SOURCE, tmp_path / "t.npz", chunk=9, say=quiet)


class NanEmbedder(Embedder):
  def __init__(self):
    self.__dict__.update(EMBEDDER.__dict__)

  def encode_image(self, images):
    return np.where(np.arange(len(images))[:, None] == 4, np.nan, super().encode_image(images))


def test_nan_from_the_model_is_not_mistaken_for_a_damaged_record(tmp_path):
  with pytest.raises(UserError, match=r"for 1 of 14 readable records .* is record 5\)"):
    score(NanEmbedder(), Damaged(), tmp_path / "s.npz", say=quiet)


def test_invalid_arguments_are_rejected(tmp_path):
  with pytest.raises(UserError, match="captions is 'last'; expected mean or max"):
    score(EMBEDDER, SOURCE, tmp_path / "s.npz", captions="last")
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="Cannot write to .*s.npz.parts.*Set --out"):
    score(EMBEDDER, SOURCE, tmp_path / "file" / "s.npz")
  with pytest.raises(UserError, match="Record 0 has no 'image'; it has 'jpg', 'text'"):
    score(EMBEDDER, [{"jpg": b"", "text": "x"}], tmp_path / "s.npz", say=quiet)


def test_damaged_files_of_an_earlier_run_are_one_message(tmp_path):
  """The plan and the chunks in OUT.parts."""
  out = tmp_path / "s.npz"
  assert score(EMBEDDER, SOURCE, out, shard=(0, 2), chunk=4, say=quiet) is None
  plan = tmp_path / "s.npz.parts/plan.json"
  chunk = next(iter(sorted(plan.parent.glob("*.npy"))))
  good, refused = plan.read_bytes(), 0
  for damaged in damaged_json(good, 200):
    plan.write_bytes(damaged)
    try:
      score(EMBEDDER, SOURCE, out, shard=(0, 2), chunk=4, say=quiet)
    except UserError as error:
      refused += 1
      assert "Delete" in str(error) and len(str(error)) < 3000
  assert refused > 100
  plan.write_bytes(good)
  whole = chunk.read_bytes()
  for damaged in (b"", whole[:40], whole[:-2], b"\x93NUMPY" + bytes(100)):
    chunk.write_bytes(damaged)
    with pytest.raises(UserError, match=f"{chunk.name} is damaged.*Delete it, and rerun"):
      score(EMBEDDER, SOURCE, out, shard=(1, 2), chunk=4, say=quiet)
  chunk.unlink()
  assert score(EMBEDDER, SOURCE, out, shard=(0, 2), chunk=4, say=quiet) is not None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """Workdir of a run of two steps on a small split."""
  workdir = tmp_path_factory.mktemp("run")
  config = get_config("2")
  config.evaluators = config.final_evaluators = {}
  config.data.source = call(OpenClipart, split="val", swapped=0.0)
  loop_lib.run(config, workdir)
  return workdir


def scores_of(monkeypatch, *arguments):
  monkeypatch.setattr(sys, "argv", ["score", *map(str, arguments)])
  assert command.main(sys.argv[1:]) == 0
  out = next(a for a in map(str, arguments) if a.startswith("--out="))
  return read_scores(out.partition("=")[2])


def test_the_command_scores_the_training_data_by_default(run, tmp_path, monkeypatch, capsys):
  trained, header = scores_of(monkeypatch, f"--model={run}", f"--out={tmp_path}/a.npz")
  assert header["source"] == "OpenClipart" and header["records"] == 372
  assert "372 scores, mean" in capsys.readouterr().out
  (tmp_path / "source.py").write_text(
    "from clip_jax.data.sources.openclipart import OpenClipart\n"
    "def get_source():\n  return OpenClipart('val')\n"
  )
  source = OpenClipart("val")
  write([source[i] for i in range(len(source))], str(tmp_path / "r.array_record"))
  config = f"--config={Path(__file__).parent}/run_config.py"
  for name, flags in {
    "b": [f"--source={tmp_path}/source.py"],
    "c": [f"--source={tmp_path}/r.array_record"],
    "d": [config, "--config.data.source.split=val"],
  }.items():
    got, _ = scores_of(monkeypatch, f"--model={run}", f"--out={tmp_path}/{name}.npz", *flags)
    np.testing.assert_allclose(got, trained, atol=1e-6)
  chosen = ScoreFilter(source, f"{tmp_path}/a.npz", keep="top 40%")
  assert len(chosen) == 149 and np.sort(trained)[-149] == np.float32(chosen.threshold)


def test_the_source_may_be_a_name_a_config_or_files(tmp_path):
  assert len(command.source_of("openclipart")) == 4562
  assert len(command.source_of("shapes")) == 10_000
  assert len(command.source_of(str(Path(__file__).parent / "run_config.py"))) == 4562
  (tmp_path / "one.py").write_text(
    "from clip_jax.config import call\nfrom clip_jax.data.sources.shapes import Shapes\n"
    "def get_config():\n  return call(Shapes, size=7)\n"
  )
  assert len(command.source_of(str(tmp_path / "one.py"))) == 7
  pq.write_table(
    pa.table({"image": [SOURCE[i]["image"] for i in range(5)], "caption": list("abcde")}),
    tmp_path / "x.parquet",
  )
  for path in (tmp_path / "x.parquet", tmp_path):
    source = command.source_of(str(path))
    assert len(source) == 5 and source[3]["text"] == "d"


def test_a_config_can_select_the_best_records(run, tmp_path, monkeypatch):
  scores_of(monkeypatch, f"--model={run}", f"--out={tmp_path}/a.npz")
  config = get_config("2")
  config.evaluators = config.final_evaluators = {}
  config.data.source = call(
    ScoreFilter, source=call(OpenClipart, split="val"), scores=f"{tmp_path}/a.npz", keep="top 40%"
  )
  config.data.size = "50%"
  again = from_json(to_json(config))
  lines = startup.summary(setup_lib.build_setup(again), tmp_path, 0)
  assert lines[0] == "data       74 records, each seen 0.8649 times: 64 samples"
  assert "Subset: 74 of 149 records" in lines[1]
  assert "ScoreFilter: top 40% by a.npz keeps 149 of 372 (40.1%), threshold " in lines[2]


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "Which model. Set --model=MODEL"),
    (("--model=x",), "Where should the scores be written"),
    (
      ("--model=x", "--out=y", "--source=s", "--config=tests/run_config.py"),
      "set only one of them",
    ),
    (("--model=x", "--out=y", "--shard=2/2"), "--shard=2/2 is not I/N"),
    (("--model=x", "--out=y", "--shard=two"), "--shard=two is not I/N"),
    (("--model=nowhere", "--out=y"), "nowhere has no config.json"),
    (("--model=x", "--out=y", "--source=nothing.py"), "no source file nothing.py"),
    (("--model=x", "--out=y", "--source=tests/tiny.py"), "tiny.py does not define get_config"),
    (("--model=x", "--out=y", "--source=nowhere"), "No records at nowhere"),
    (("--model=x", "--out=y", "--source=openclipart"), "No model found in x"),
  ],
)
def test_an_invalid_command_is_rejected(arguments, message, monkeypatch):
  monkeypatch.chdir(Path(__file__).parent.parent)
  monkeypatch.setattr(sys, "argv", ["score", *arguments])
  with pytest.raises(UserError, match=message):
    command.main(list(arguments))
