"""The parts in docs/adding.md: taken from the page, used in a run, and each tested alone."""

import importlib
import json
import pickle
import re

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image
import pytest

import clip_jax
from clip_jax.config import build, call
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.decode import decode
from clip_jax.data.pipeline import Examples
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.model.learner import split_state
from clip_jax.parallel import mesh as mesh_lib, partition, placement
from clip_jax.towers.concat import ConcatTowers
from clip_jax.training import loop as loop_lib, state as state_lib, step as step_lib
from markdown_pages import ROOT, blocks
from measuring import measure
from run_config import get_config
from tiny import batch, image_tower, largest_difference, learner, text_tower

PAGE = blocks((ROOT / "docs/adding.md").read_text(), "python")
PARTS = {
  "PatchMlp": "patch_mlp",
  "Triplet": "triplet",
  "Table": "table",
  "WordOrder": "word_order",
  "Cutout": "cutout",
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
  """The page's classes by name, each imported from a file with the page's code."""
  folder = tmp_path_factory.mktemp("parts")
  for block in PAGE:
    if name := re.match(r"# clip_jax/\S*?(\w+)\.py\n", block):
      (folder / f"{name[1]}.py").write_text(block)
  with pytest.MonkeyPatch.context() as patched:
    patched.syspath_prepend(folder)
    yield {name: getattr(importlib.import_module(file), name) for name, file in PARTS.items()}


@pytest.fixture(scope="module")
def lines(parts):
  """The page's config lines: calls by the name of the section."""
  known = {**parts, "call": call, "OpenClipart": OpenClipart, "HorizontalFlip": HorizontalFlip}
  return {
    section: made
    for block in PAGE
    if re.match(r"\w+=", block)
    for section, made in eval(f"dict({block})", known).items()
  }


@pytest.fixture(scope="module")
def table(parts, tmp_path_factory):
  """A call of the page's source, for a CSV file of 64 pairs."""
  folder, clipart = tmp_path_factory.mktemp("table"), OpenClipart(split="val")
  rows = ["file,caption"]
  for i in range(64):
    Image.fromarray(decode(clipart[i]["image"])).save(folder / f"{i}.png")
    text = clipart[i]["text"].replace('"', "")
    rows.append(f'{i}.png,"{text}"')
  (folder / "pairs.csv").write_text("\n".join(rows), encoding="utf-8")
  return call(parts["Table"], path=str(folder / "pairs.csv"))


def test_page_has_all_parts_and_their_config_lines(parts, lines):
  assert set(lines) == {"image", "objective", "source", "evaluators", "augment"}
  assert max(len(block.splitlines()) for block in PAGE) <= 22


def test_run_of_custom_parts_trains_evaluates_and_loads(parts, lines, table, tmp_path):
  config = get_config("12")
  config.model.image, config.objective = lines["image"], lines["objective"]
  config.data.source = table
  config.data.views.images.image.augment = lines["augment"]
  config.evaluators = {**lines["evaluators"], "own": call(parts["WordOrder"], source=table)}
  config.final_evaluators = {"retrieval": call(Retrieval, source=table)}
  config.model.text.depth, config.train.log_every, config.train.eval_every = 0, 1, 0
  assert loop_lib.run(config, tmp_path) == 0
  logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  losses = [line["train/loss"] for line in logged if "train/loss" in line]
  assert len(losses) == 12 and losses[-1] < losses[0]
  numbers = {name: value for line in logged for name, value in line.items()}
  assert 0 <= numbers["word_order/top1"] <= 100 and numbers["own/examples"] == 64
  with pytest.raises(clip_jax.errors.UserError, match="--trust="):
    clip_jax.load(tmp_path)
  embedder = clip_jax.load(tmp_path, trust=tuple(PARTS.values()))
  np.testing.assert_allclose(np.linalg.norm(embedder.encode_text(["a cat"])), 1, rtol=1e-5)


def trained(spec, objective, *, microbatches=1, mesh=None, optimizer=None, steps=2):
  """Trains some steps on one batch; returns the parameters and the losses."""
  made = learner(objective, image=spec, text=text_tower(depth=0, pool="mean"))
  optimizer = optimizer or optax.sgd(0.1)
  step = step_lib.make_train_step(
    split_state(made)[0], optimizer, seed=0, microbatches=microbatches
  )
  mesh = mesh or mesh_lib.make_mesh(devices=jax.devices()[:1])
  losses = []
  with jax.set_mesh(mesh):
    state = state_lib.init_train_state(made, optimizer)
    state = jax.device_put(state, partition.state_shardings(state, mesh, min_size=64))
    data, step = placement.to_global(batch(16), placement.batch_sharding(mesh)), jax.jit(step)
    for _ in range(steps):
      state, metrics = step(state, data)
      losses.append(float(metrics["loss"]))
  return jax.device_get(state.params), losses


def test_tower_and_objective_match_with_microbatches_and_on_eight_devices(parts):
  spec = call(parts["PatchMlp"], width=32, patch=8, image_size=16, dtype="float32")
  objective = call(parts["Triplet"])
  params, losses = trained(spec, objective)
  for options in (dict(microbatches=4), dict(mesh=mesh_lib.make_mesh(2, 2, 2))):
    theirs, their_losses = trained(spec, objective, **options)
    np.testing.assert_allclose(their_losses, losses, rtol=1e-5)
    assert largest_difference(theirs, params) < 2e-6


def test_tower_and_objective_overfit_a_batch(parts):
  spec = call(parts["PatchMlp"], width=32, patch=8, image_size=16, dtype="float32")
  _, losses = trained(spec, call(parts["Triplet"]), optimizer=optax.adam(3e-3), steps=60)
  assert losses[-1] < 0.2 * losses[0]


def test_tower_refuses_to_drop_patches(parts):
  tower = build(call(parts["PatchMlp"], patch=8, image_size=16), rngs=nnx.Rngs(0))
  with pytest.raises(clip_jax.errors.UserError, match="Set the objective.s keep_patches=1"):
    tower(jnp.zeros((1, 16, 16, 3)), keep=0.5)


def test_tower_can_be_combined_with_another(parts):
  spec = call(parts["PatchMlp"], width=32, patch=8, image_size=16, dtype="float32")
  both = call(ConcatTowers, towers=(spec, image_tower()))
  made = build(both, rngs=nnx.Rngs(0))
  image = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
  assert made.width == made.towers[0].width + made.towers[1].width
  np.testing.assert_allclose(made(image)[:, :32], made.towers[0](image), rtol=1e-5)
  _, losses = trained(both, call(parts["Triplet"]), optimizer=optax.adam(3e-3), steps=20)
  assert losses[-1] < losses[0]


def test_objective_matches_a_loop_over_triplets(parts):
  rng = np.random.default_rng(0)
  z = {name: rng.normal(size=(6, 4)) / 3 for name in ("image", "text")}
  loss = 0
  for i in range(6):
    right = z["image"][i] @ z["text"][i]
    others = [j for j in range(6) if j != i]
    loss += max(0, 0.2 + max(z["image"][i] @ z["text"][j] for j in others) - right) / 6
    loss += max(0, 0.2 + max(z["image"][j] @ z["text"][i] for j in others) - right) / 6
  found, _ = parts["Triplet"]().loss({name: jnp.float32(x) for name, x in z.items()}, train=True)
  np.testing.assert_allclose(found, loss, rtol=1e-5)


def test_pickled_source_reads_the_same_records(table):
  source = build(table)
  again = pickle.loads(pickle.dumps(source))
  assert len(again) == 64 and again[5] == source[5]
  views = build(get_config().data.views)
  for place in (0, 63, 64):
    one, other = (Examples(s, views, seed=1)[place] for s in (source, again))
    np.testing.assert_array_equal(one["image"], other["image"])


class Letters:
  """An embedder that encodes a text by its first word, and an image by its brightness."""

  def encode_image(self, images):
    return np.float32([[image.mean() > 100, image.mean() <= 100] for image in images])

  def encode_text(self, texts):
    return np.float32([[text.startswith("light"), text.startswith("dark")] for text in texts])


def test_evaluator_counts_correct_word_orders(parts):
  picture = lambda brightness: np.full((4, 4, 3), brightness, np.uint8)
  # Correct, wrong, and a tie because the text is the same backwards.
  source = [
    {"image": picture(200), "text": "light sky"},
    {"image": picture(0), "text": "sky dark"},
    {"image": picture(200), "text": "light"},
  ]
  found = measure(parts["WordOrder"](source), Letters())
  assert found == {"top1": pytest.approx(100 / 3), "examples": 3.0}


def test_augmentation_paints_a_square_and_does_not_modify_its_input(parts):
  image = np.zeros((20, 30, 3), np.uint8)
  cutout, counts = parts["Cutout"](side=8), []
  for seed in range(50):
    painted = cutout(image, np.random.default_rng(seed))
    np.testing.assert_array_equal(painted, cutout(image, np.random.default_rng(seed)))
    rows, columns = np.nonzero(painted[..., 0])
    assert painted.shape == image.shape and painted.dtype == np.uint8
    assert set(np.unique(painted)) == {0, 128}
    assert np.ptp(rows) < 8 and np.ptp(columns) < 8
    counts.append(len(rows))
  assert not image.any() and max(counts) == 64 and min(counts) < 64
