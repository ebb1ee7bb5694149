"""FLIP: CLIP with a random subset of each image's patches."""

from typing import Annotated

from clip_jax.cli.values import PositiveFloat, PositiveFraction, PositiveInt, Range, checked
from clip_jax.losses import SameGroup
from clip_jax.objectives.clip import Clip


@checked
def flip(
  *,
  keep_patches: PositiveFraction = 0.5,
  temperature: PositiveFloat = 0.07,
  max_scale: Annotated[float, Range(1)] = 100.0,
  chunk_size: PositiveInt | None = None,
  same_caption: SameGroup = "negative",
  group: str = "tokens",
) -> Clip:
  """A `Clip` that trains on a random subset of each image's patches, which makes steps cheaper.

  Each image keeps int(N * keep_patches) patches, drawn anew at every step; a class token is always
  kept. Evaluation uses all patches. To close the gap between training and evaluation, fine-tune
  briefly on whole images: a run of `Clip` initialised from this one with
  `train.init_from=WORKDIR`.

  The scale is clipped to its bound after the update. (The published code clips it inside the loss,
  where its gradient becomes zero, so that it can never decrease again.)

  Args:
    keep_patches: fraction of the patches kept; the paper uses 0.5 and 0.25.
    temperature, max_scale, chunk_size, same_caption, group: as in `Clip`.

  Source: Li et al. 2023 (FLIP), sec. 3.
  """
  return Clip(
    temperature=temperature,
    max_scale=max_scale,
    keep_patches=keep_patches,
    chunk_size=chunk_size,
    same_caption=same_caption,
    group=group,
  )
