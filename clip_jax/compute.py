"""What an example costs: multiply-adds of a learner's forward pass, by part.

Conventions, the same wherever this package states compute:

  - Counted are matrix products and convolutions (`flops.multiply_adds`), one forward pass as in
    training: all of SLIP's views, of FLIP's patches those that are kept, CLIPA's images at their
    smaller size. What augments pixels on the device is not counted.
  - One multiply-add is two FLOPs, and training takes three forward passes' worth (the backward pass
    is twice the forward one): 6 FLOPs for each multiply-add forward. What rematerialisation and
    microbatches compute again is not counted, so that this is the model's compute and not a
    machine's.

The study (Li, Xie, Cubuk 2024) calls multiply-adds forward "GFLOPs": 5.79 G for a ViT-B/32 and its
text tower, where training takes 34.7 GFLOP an example.
"""

import dataclasses

from flax import nnx
import jax

from clip_jax import model as model_lib
from clip_jax.flops import multiply_adds, parameters

FLOPS = 6  # Of training, for each multiply-add forward.


@dataclasses.dataclass(frozen=True)
class Compute:
  """Multiply-adds forward an example, and parameters.

  Attributes:
    image: in the image tower and its projections, all views together.
    text: in the text tower and its projection.
    loss: in what the loss does with embeddings: similarities, and heads that couple examples.
    parameters: of the learner.
  """
  image: float
  text: float
  loss: float
  parameters: int

  @property
  def forward(self) -> float:
    """Multiply-adds of one example's forward pass."""
    return self.image + self.text + self.loss

  @property
  def flops(self) -> float:
    """FLOPs of training on one example once."""
    return FLOPS * self.forward


def count(learner: model_lib.Learner, batch: dict[str, jax.ShapeDtypeStruct]) -> Compute:
  """Counts; nothing is computed.

  Args:
    learner: arrays or their shapes.
    batch: shapes of what the objective reads.
  """
  graphdef, params, stats = model_lib.split(learner)
  B = len(batch["tokens"])

  def embed(params, stats, batch):
    made = nnx.merge(graphdef, params, stats)
    return made.objective.embed(made.model, batch, train=True,
                                key=jax.random.split(jax.random.key(0), B))

  def text(params, stats, tokens):
    return nnx.merge(graphdef, params, stats).model.encode_text(tokens, train=True)

  def loss(params, stats, embeddings):
    return nnx.merge(graphdef, params, stats).objective.loss(embeddings)[0]

  towers = multiply_adds(embed, params, stats, batch)
  words = multiply_adds(text, params, stats, batch["tokens"])
  rest = multiply_adds(loss, params, stats, jax.eval_shape(embed, params, stats, batch))
  return Compute((towers - words) / B, words / B, rest / B, parameters(params))
