"""Compute per example: multiply-adds of a learner's forward pass, by part.

Conventions used throughout this package:

  - Matrix products and convolutions are counted (`flops.count_multiply_adds`), for one forward pass
    as in training: all of SLIP's views, the patches that FLIP keeps, CLIPA's images at reduced
    size. Augmentation on the device is not counted.
  - One multiply-add is two FLOPs, and training costs three forward passes, because the backward
    pass costs twice the forward pass: 6 FLOPs for each forward multiply-add, less for parts whose
    parameters are frozen. Recomputation by
    rematerialisation and microbatches is not counted, so the figure describes the model and not
    the hardware.

The study (Li, Xie, Cubuk 2024) reports forward multiply-adds as "GFLOPs": 5.79 G for a ViT-B/32
with its text tower, which is 34.7 GFLOP per training example.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax

from clip_jax.costs.flops import count_multiply_adds, count_parameters
from clip_jax.interfaces import batch_size_of
from clip_jax.model import learner as learner_lib
from clip_jax.model.frozen import Frozen, join_frozen, split_frozen

FLOPS = 6  # Training FLOPs for each forward multiply-add.


@dataclasses.dataclass(frozen=True)
class ModelCompute:
  """Forward multiply-adds per example, and number of parameters.

  Attributes:
    image: multiply-adds of the image tower and its projections over all views.
    text: multiply-adds of the text tower and its projection.
    loss: multiply-adds of the loss on embeddings: similarities, and heads that couple examples.
    parameters: number of parameters of the learner.
    trained_parameters: number of those that are not frozen.
    backward: share of the backward pass that is computed, below 1 if parameters are frozen; with an
      objective that selects rows, with their second forward pass.
  """

  image: float
  text: float
  loss: float
  parameters: int
  trained_parameters: int
  backward: float = 1.0

  @property
  def forward(self) -> float:
    """Multiply-adds of the forward pass of one example."""
    return self.image + self.text + self.loss

  @property
  def flops(self) -> float:
    """FLOPs of one training step per example."""
    return (2 + (FLOPS - 2) * self.backward) * self.forward


def count_compute(
  learner: learner_lib.Learner, batch: dict[str, jax.ShapeDtypeStruct], frozen: Frozen | None = None
) -> ModelCompute:
  """Counts the compute of a learner by tracing it; nothing is executed.

  Args:
    learner: with arrays or their shapes.
    batch: shapes of the entries that the objective reads.
    frozen: the parameters that are not trained.
  """
  graphdef, params, stats = learner_lib.split_state(learner)
  B = batch_size_of(batch)

  def embed(params, stats, batch):
    merged = nnx.merge(graphdef, params, stats)
    keys = jax.random.split(jax.random.key(0), batch_size_of(batch))
    return merged.objective.embed(merged.model, batch, train=True, key=keys)

  def text(params, stats, tokens):
    rows = tokens.reshape(-1, tokens.shape[-1])  # There may be several captions per image.
    return nnx.merge(graphdef, params, stats).model.encode_text(rows, train=True)

  def loss(params, stats, embeddings):
    return nnx.merge(graphdef, params, stats).objective.loss(embeddings, train=True)[0]

  towers = count_multiply_adds(embed, params, stats, batch)
  # An objective that does not read the tokens does not run the text tower.
  text_tower = (
    count_multiply_adds(text, params, stats, batch["tokens"]) if "tokens" in batch else 0.0
  )
  # Selecting the rows of a step takes a forward pass over all rows; the rest is for those rows.
  objective: Any = learner.objective
  rows = objective.selected_rows(B) if hasattr(objective, "select") else B
  few = {name: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype) for name, x in batch.items()}
  embeddings = jax.eval_shape(embed, params, stats, few)
  loss_cost = count_multiply_adds(loss, params, stats, embeddings)
  trained, held = split_frozen(params, frozen or {})

  def gradient(trained, held, stats, batch):
    of = lambda trained: loss(
      (params := join_frozen(trained, held)), stats, embed(params, stats, batch)
    )
    return jax.grad(of)(trained)

  backward = 1.0
  if frozen:
    everything = count_multiply_adds(gradient, params, {}, stats, batch)
    there = count_multiply_adds(gradient, trained, held, stats, batch)
    backward = 1 - (everything - there) / (everything - towers - loss_cost)
  if rows < B:  # One forward pass for all rows, and one with its backward pass for the selected.
    backward = rows / B * (0.5 + backward)
  return ModelCompute(
    image=(towers - text_tower) / B,
    text=text_tower / B,
    loss=loss_cost / B,
    parameters=count_parameters(params),
    trained_parameters=count_parameters(trained),
    backward=backward,
  )
