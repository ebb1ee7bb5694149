"""The selection of rows against its definition, one row at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.errors import UserError
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.selected import Selected
from clip_jax.objectives.words import Words
from stand_ins import StandIn, rngs

B, E, SCALE, REFERENCE = 8, 5, 4.0, 6.0


def unit(seed):
  z = np.random.default_rng(seed).normal(size=(B, E))
  return z / np.linalg.norm(z, axis=1, keepdims=True)


Z = dict(zip(("image", "text", "teacher_image", "teacher_text"), map(unit, range(4))))


def info_nce(logits, i, chosen):
  """The loss of row i among the chosen rows, mean of both directions."""
  both = (logits, logits.T)
  return np.mean([np.log(1 + sum(np.exp(x[i, j] - x[i, i]) for j in chosen)) for x in both])


@pytest.mark.parametrize(
  "score", ["learnable", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hard", "easy"))]
)
def test_each_chunk_has_the_rows_with_the_largest_scores(score):
  made = Selected(
    pairs=Clip(temperature=1 / SCALE),
    fraction=0.5,
    chunks=4,
    score=score,
    temperature=1e-6,  # The noise then decides among equal scores only.
    reference_scale=REFERENCE,
  )
  assert ("teacher_image" in made.inputs) == (score != "hard")
  z = {name: jnp.float32(x) for name, x in Z.items()}
  rows = np.asarray(jax.jit(made.select)(z, jax.random.key(0))).tolist()
  own = SCALE * Z["image"] @ Z["text"].T
  reference = REFERENCE * Z["teacher_image"] @ Z["teacher_text"].T
  for k in range(1, 4):
    value = lambda i: (
      (score != "easy") * info_nce(own, i, rows[:k])
      - (score != "hard") * info_nce(reference, i, rows[:k])
    )
    assert rows[k] == max(set(range(B)) - set(rows[:k]), key=value)


def test_the_chance_of_a_row_follows_its_score_and_the_key():
  made = Selected(pairs=Clip(temperature=1 / SCALE), fraction=0.25, chunks=2, score="hard")
  z = {name: jnp.float32(Z[name]) for name in ("image", "text")}
  keys = jax.random.split(jax.random.key(1), 4000)
  rows = np.asarray(jax.jit(jax.vmap(lambda key: made.select(z, key)))(keys))
  assert (rows[:, 0] != rows[:, 1]).all()
  logits, chances = SCALE * Z["image"] @ Z["text"].T, np.zeros(B)
  for first in range(B):
    others = [i for i in range(B) if i != first]
    weights = np.exp([info_nce(logits, i, [first]) for i in others])
    chances[others] += weights / weights.sum() / B
  np.testing.assert_allclose(np.bincount(rows[:, 0], minlength=B) / 4000, 1 / B, atol=0.03)
  np.testing.assert_allclose(np.bincount(rows[:, 1], minlength=B) / 4000, chances, atol=0.03)


def test_impossible_settings_are_errors():
  with pytest.raises(UserError, match="4 of the 8 rows of a batch, which 3 chunks do not divide"):
    Selected(fraction=0.5, chunks=3).selected_rows(8)
  with pytest.raises(UserError, match="must be the outermost objective"):
    Words(model=StandIn(), pairs=Selected(), rngs=rngs())
