"""Compute of accelerators, from peak FLOP/s and the share of it that training reaches."""

from clip_jax.errors import UserError
from clip_jax.planning.chips import CHIPS

# Peak dense bfloat16 FLOP/s of one accelerator, from its data sheet. The planner (CHIPS) does not
# cover the older ones.
PEAKS = {
  "t4": 65e12,
  "v100": 125e12,
  "l4": 121e12,
  "a100": 312e12,
  "v2": 45e12,
  "v3": 123e12,
  **{name: chip.flops for name, chip in CHIPS.items()},
}
UTILISATION = 0.4  # Default fraction of the peak that training reaches.


def flops_per_hour(accelerator: str = "h200", utilisation: float = UTILISATION) -> float:
  """FLOPs that one accelerator computes in an hour.

  Raises:
    UserError: the accelerator is unknown, or the utilisation is outside (0, 1].
  """
  if accelerator not in PEAKS:
    raise UserError(
      f"The peak FLOP/s of accelerator {accelerator!r} is unknown; known are "
      f"{', '.join(PEAKS)}. Choose one of them, or give the budget in FLOPs."
    )
  if not 0 < utilisation <= 1:
    raise UserError(
      f"utilisation={utilisation} must be a fraction of the peak, above 0 and at most 1."
    )
  return 3600 * PEAKS[accelerator] * utilisation
