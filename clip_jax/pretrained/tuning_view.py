"""The training view for a model that is tuned further: mild crops, resized as the model expects."""

from ml_collections.config_dict import ConfigDict

from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError
from clip_jax.pretrained.model_bundle import Description


def tuning_view(start: Description) -> ConfigDict:
  """Returns the call of an `ImageView`.

  For a run of this package, it is the run's own view named "image". For another checkpoint, it
  crops at least 0.9 of the area, and keeps the resize mode and the interpolation.

  Raises:
    UserError: the run has no such view.
  """
  if start.config is not None and "image" in start.config.data.views.images:
    return start.config.data.views.images.image
  if start.preprocess is None:
    raise UserError("The run has no view named image. Write a config that makes its views.")
  before = start.preprocess
  if before.resize_mode == "longest":  # Padding stays only if nothing is cropped.
    return call(ImageView, crop=before)
  mode = "squash" if before.resize_mode == "squash" else "keep_aspect"
  return call(
    ImageView,
    crop=call(
      RandomResizedCrop,
      size=before.size,
      scale=(0.9, 1.0),
      resize_mode=mode,
      interpolation=before.interpolation,
    ),
  )
