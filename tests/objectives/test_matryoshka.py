"""The losses of prefixes, and models that are cut to one."""

import numpy as np
import pytest

from clip_jax import losses
from clip_jax.errors import UserError
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.global_clip import GlobalClip
from clip_jax.objectives.matryoshka import Matryoshka
from clip_jax.objectives.words import Words
from stand_ins import StandIn, rngs, stand_in_batch


def test_the_loss_is_the_weighted_sum_over_normalised_prefixes():
  model = StandIn(embed_dim=6)
  made = Matryoshka(model=model, pairs=Clip(temperature=0.2), dims=(2, 3), weights=(0.5, 2.0))
  data = stand_in_batch(model, 5)
  z = made.embed(model, data, train=True, key=None)
  total, metrics = made.loss(z, train=True)
  expected = 0.0
  for d, weight in ((6, 1.0), (2, 0.5), (3, 2.0)):
    cut = [np.asarray(z[side], np.float64)[:, :d] for side in ("image", "text")]
    cut = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in cut]
    loss = float(losses.info_nce(*cut, 5.0))
    expected += weight * loss
    name = "pairs/loss" if d == 6 else f"matryoshka/loss_{d}"
    assert float(metrics[name]) == pytest.approx(loss, rel=1e-5)
  assert float(total) == pytest.approx(expected, rel=1e-5)
  assert 0 <= metrics["matryoshka/image_to_text_accuracy_2"] <= 1


def test_settings_that_do_not_fit_are_errors():
  model = StandIn(embed_dim=6)
  for dims in ((), (3, 2), (2, 6), (2, 2)):
    with pytest.raises(UserError, match="below the model's embed_dim=6"):
      Matryoshka(model=model, dims=dims)
  with pytest.raises(UserError, match="2 dims but 1 weights"):
    Matryoshka(model=model, dims=(2, 3), weights=(1.0,))
  for pairs in (GlobalClip(examples=9), Words(model=model, rngs=rngs())):
    with pytest.raises(UserError, match=f"loss of {type(pairs).__name__} several times"):
      Matryoshka(model=model, pairs=pairs, dims=(2,))
