"""Stored embeddings: what is written, read and refused, and training on them."""

import json
from pathlib import Path

import numpy as np
import pytest

import clip_jax
from clip_jax import losses
from clip_jax.cli.config_files import load_function
from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.decode import Picture
from clip_jax.data.embedding_store import EmbeddingStore, view_rng
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.sources.with_embeddings import WithEmbeddings
from clip_jax.data.stored_views import StoredViews
from clip_jax.data.subset import Subset
from clip_jax.embed.__main__ import main
from clip_jax.embed.writer import write_embeddings
from clip_jax.errors import UserError
from clip_jax.training.setup import build_setup
from golden_checkpoints import GOLDENS, load_golden

MODEL = GOLDENS["huggingface_clip"][0]
RECORDS = 20
CONFIG = Path(__file__).parents[2] / "configs/stored_features.py"
SOURCE = call(Subset, source=call(OpenClipart, split="val"), size=RECORDS)


@pytest.fixture(scope="module")
def source():
  return Subset(OpenClipart("val"), RECORDS)


@pytest.fixture(scope="module")
def stored(tmp_path_factory, source):
  """The embeddings of the records, in two shards, without crops."""
  out = tmp_path_factory.mktemp("stored") / "e"
  write_embeddings(load_golden("huggingface_clip"), source, out, model=str(MODEL), shard_size=16)
  return out


def test_stored_arrays_are_the_outputs_of_the_model(stored, source):
  store, model = EmbeddingStore(stored), load_golden("huggingface_clip")
  assert len(store) == RECORDS and len(store.manifest["shards"]) == 2
  records = [source[i] for i in range(RECORDS)]
  z = model.encode_image([record["image"] for record in records])
  found = np.stack([store[i]["image_embeddings"][0] for i in range(RECORDS)])
  np.testing.assert_allclose(found, z, atol=2e-3)
  z = model.encode_text([record["text"] for record in records])
  np.testing.assert_allclose(
    np.stack([store[i]["text_embeddings"][0] for i in range(RECORDS)]), z, atol=2e-3
  )
  assert found.dtype == np.float16 and store[0]["texts"] == 1


def tuning(stored, source=SOURCE, **optimizer):
  config = load_function(f"{CONFIG}:{stored}", "get_config")()
  config.data.source.source = source
  config.data.batch_size, config.data.threads = 16, 1
  config.train.epochs, config.train.steps = None, 1
  config.optimizer.update(optimizer)
  return config


def test_training_on_stored_features_has_the_live_loss_and_gives_a_whole_model(
  stored, source, tmp_path
):
  config = tuning(stored)
  assert clip_jax.run(config, tmp_path) == 0
  line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
  batch = next(iter(_batches(config)))
  model = load_golden("huggingface_clip")
  records = [source[int(i)] for i in batch["index"]]
  z_image = model.encode_image([record["image"] for record in records])
  z_text = model.encode_text([record["text"] for record in records])
  live = float(losses.info_nce(z_image, z_text, model.scale))
  assert line["train/loss"] == pytest.approx(live, rel=1e-3)
  tuned = clip_jax.load(tmp_path)
  picture = np.random.default_rng(0).integers(0, 256, (50, 60, 3)).astype(np.uint8)
  features = [one.encode_pixels(one.preprocess(picture)[None])[0] for one in (tuned, model)]
  np.testing.assert_allclose(*features, atol=1e-5)


def _batches(config):
  from clip_jax.data.pipeline import Examples

  setup = build_setup(config)
  examples = Examples(setup.data.source, setup.data.views, seed=config.seed)
  rows = [examples[i] for i in range(16)]
  yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def test_crops_are_made_again_from_their_seeds(tmp_path, source):
  model = load_golden("huggingface_clip")
  write_embeddings(
    model, source, tmp_path, model=str(MODEL), what=("embeddings",), views=2, scale=0.5, seed=3
  )
  crop = RandomResizedCrop(32, scale=(0.1, 0.2))  # The store says which scale it was.
  views = StoredViews(model.tokenize, image="pixels", crop=crop, teacher=True)
  record = WithEmbeddings(source, tmp_path)[4]
  for seed in range(3):
    example = views(record, np.random.default_rng(seed))
    z = model.encode_pixels(example["image"][None])[1][0]
    np.testing.assert_allclose(example["teacher_image"], z, atol=2e-3)
  box = [RandomResizedCrop(32, (0.5, 1.0)).box(100, 90, view_rng(3, 4, v)) for v in (0, 1, 1)]
  assert box[0] != box[1] == box[2]
  assert Picture(record["image"]).height > 0
  with pytest.raises(UserError, match="stored embeddings have no image_features"):
    StoredViews(model.tokenize)(record, np.random.default_rng(0))


def test_a_rerun_continues_after_the_last_whole_shard(tmp_path, source, stored):
  model = load_golden("huggingface_clip")
  write = lambda **more: write_embeddings(
    model, source, tmp_path, model=str(MODEL), shard_size=16, **more
  )
  write()
  manifest = json.loads((tmp_path / "manifest.json").read_text())
  last = tmp_path / manifest["shards"][-1]["file"]
  last.write_bytes(last.read_bytes()[:-8])
  with pytest.raises(UserError, match="does not match its checksum. Delete it and rerun"):
    EmbeddingStore(tmp_path)
  first = (tmp_path / manifest["shards"][0]["file"]).stat().st_mtime_ns
  write()
  assert (tmp_path / manifest["shards"][0]["file"]).stat().st_mtime_ns == first
  assert EmbeddingStore(tmp_path).manifest == EmbeddingStore(stored).manifest
  with pytest.raises(UserError, match="holds other embeddings: captions differ"):
    write(captions=2)


def test_what_does_not_belong_together_is_refused(stored, source, tmp_path):
  with pytest.raises(UserError, match="are of another source, with 20 records; this one has 21"):
    WithEmbeddings(Subset(OpenClipart("val"), 21), stored)
  with pytest.raises(UserError, match=r"Freeze the tower with freeze_params=\('model/image/\.\*'"):
    build_setup(tuning(stored, freeze_params=()))
  config = tuning(stored)
  config.train.init_from, config.train.init_logit = None, False
  with pytest.raises(UserError, match="has no trained tower. Set --config.train.init_from"):
    build_setup(config)
  with pytest.raises(UserError, match="There are no stored embeddings"):
    EmbeddingStore(tmp_path)
  other = tmp_path / "e"
  other.mkdir()
  for file in stored.iterdir():
    (other / file.name).write_bytes(file.read_bytes())
  manifest = json.loads((other / "manifest.json").read_text())
  manifest["model"]["image_tower"] = "0" * 16
  (other / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(UserError, match="are of another image tower than that of"):
    clip_jax.run(tuning(other), tmp_path / "run")


@pytest.mark.parametrize(
  "arguments, message",
  [
    ([], "Which model"),
    (["--model=M"], "Set --out=DIR"),
    (["--model=M", "--out=D", "--what=pixels"], "--what=pixels names something else"),
    (["--model=M", "--out=D", "--scale=2"], "--scale=2 is not a share"),
  ],
)
def test_mistakes_in_the_command_are_explained(arguments, message):
  with pytest.raises(UserError, match=message):
    main(arguments)


def test_views_of_equal_pixels_are_refused(source, tmp_path):
  model = load_golden("huggingface_clip")
  with pytest.raises(UserError, match="2 views would all be the same"):
    write_embeddings(model, source, tmp_path, model="", views=2)
