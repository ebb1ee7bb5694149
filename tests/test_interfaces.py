"""The check of parts against their protocols: what is missing is named before anything compiles."""

from collections.abc import Sequence

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import interfaces
from clip_jax.config import build, call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.errors import UserError
from clip_jax.interfaces import batch_size_of, check_part, check_parts
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.slip import Slip
from clip_jax.towers.concat import ConcatTowers
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_constant
from tiny import image_tower, learner, model_call


class NoWidth(nnx.Module):
  """An image tower that does not declare its width."""

  def __init__(self):
    self.image_size = (16, 16)

  def __call__(self, image, *, train=False, keep=1.0, key=None):
    return image.mean((1, 2))


class NoKey(NoWidth):
  """An image tower that does not take the key of patch dropout."""

  def __init__(self):
    self.image_size, self.width = 16, 3

  def __call__(self, image, *, train=False):
    return image.mean((1, 2))


class NoLogit:
  """An objective without `logit`."""

  inputs = ("image", "tokens")

  def embed(self, model, batch, *, train, key):
    return {}

  def loss(self, embeddings, *, train):
    return jnp.float32(0), {}


class OldLoss(Clip):
  """An objective whose loss does not take `train`, and whose inputs are a string."""

  inputs = "image"

  def loss(self, embeddings):
    return jnp.float32(0), {}


def test_built_parts_of_this_package_pass():
  made = learner(call(Slip, projection_hidden_dim=8, outputs=4))
  check_part(made.model, interfaces.Model, "model")
  check_part(made.objective, interfaces.Objective, "objective")
  check_part(OpenClipart(), interfaces.Source, "source")
  check_part([{"image": None}], interfaces.Source, "source")
  check_part(SentencePiece(context_length=8), interfaces.Tokenizer, "tokenizer")
  check_part(lambda image, key: image, interfaces.DeviceAugment, "augment")
  schedule = warmup_constant(warmup=0, total_steps=9)
  check_part(adamw(learning_rate=1.0, schedule=schedule), interfaces.Optimizer, "optimizer")


def test_a_missing_attribute_is_named_where_a_part_is_built():
  with pytest.raises(
    UserError, match=r"image of TwoTowers, NoWidth, is not an ImageTower: .* width"
  ):
    learner(image=call(NoWidth))
  with pytest.raises(UserError, match="towers of ConcatTowers, NoWidth, .* it has no width"):
    learner(image=call(ConcatTowers, towers=(image_tower(), call(NoWidth))))
  with pytest.raises(UserError, match=r"pairs of Slip, NoLogit, .* has no logit\(\)"):
    learner(call(Slip, pairs=call(NoLogit)))


def test_all_problems_of_a_part_are_in_one_message():
  with pytest.raises(UserError) as error:
    build(model_call(image=call(NoKey)), rngs=nnx.Rngs(0))
  assert "its image_size is 16, not tuple" in str(error.value)
  assert "as __call__(image, *, train, keep, key): got an unexpected keyword" in str(error.value)
  with pytest.raises(UserError) as error:
    check_part(OldLoss(), interfaces.Objective, "config.objective")
  assert "config.objective, OldLoss, is not an Objective" in str(error.value)
  assert "its inputs is 'image', not tuple" in str(error.value)
  assert "as loss(embeddings, *, train): got an unexpected keyword" in str(error.value)
  assert "interfaces.Objective" in str(error.value)


def test_protocols_inside_protocols_are_checked():
  class Views:
    outputs, tokenizer = ("image",), object()

    def __call__(self, record, rng):
      return {}

  with pytest.raises(
    UserError, match=r"views.tokenizer, object, .* no context_length; .*vocab_size"
  ):
    check_part(Views(), interfaces.Views, "views")


def test_arguments_are_checked_by_their_type_hints():
  hints = {
    "one": interfaces.Source,
    "maybe": interfaces.Source | None,
    "many": Sequence[interfaces.Source],
    "other": int,
  }
  good = {"one": [1], "maybe": None, "many": ([1], [2]), "other": "not an int", "unknown": 3}
  check_parts(good, hints, "f")
  for name, value in (("one", 3), ("maybe", 3), ("many", ([1], 3))):
    with pytest.raises(UserError, match=f"{name} of f, int, is not a Source: it has no __len__()"):
      check_parts({**good, name: value}, hints, "f")


def test_any_entry_gives_the_batch_size():
  assert batch_size_of({"view_a": np.zeros((5, 2))}) == batch_size_of({"index": np.zeros(5)}) == 5
