"""FLIP: CLIP on images of which most patches are left out."""

from clip_jax.objectives.clip import Clip


def flip(*, keep_patches: float = 0.5, temperature: float = 0.07, max_scale: float = 100.0,
         block: int | None = None) -> Clip:
  """A `Clip` that sees a random part of each image's patches, so a step costs that much less.

  A number of patches is kept, int(N * keep_patches), another subset for each image at each visit;
  a class token stays. Evaluation sees all patches. What that changes is mended by a short training
  on whole images: a run of `Clip` that starts from this one, `train.start_from=WORKDIR`.

  The temperature stops at its bound after the update. (In the published code it is cut inside the
  loss, where its gradient is lost and cannot lead it back.)

  Args:
    keep_patches: share of the patches kept; the paper has 0.5 and 0.25.
    temperature, max_scale, block: as of `Clip`.

  Source: Li et al. 2023 (FLIP), sec. 3.
  """
  return Clip(temperature=temperature, max_scale=max_scale, keep_patches=keep_patches, block=block)
