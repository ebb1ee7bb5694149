"""CLIPA: CLIP on small images and short texts.

  python -m clip_jax.train --config=configs/clipa.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as in --config=configs/clipa.py:paper. After either,
configs/clipa_tuning.py trains a little at full size. Not run here.

From Li, Wang, Xie 2023 and its code, for paper: ViT-B/16 at 112 px (49 patches), fixed positions, a
text tower of width 512 with 16 tokens whose padding is not hidden; crops 0.4 to 1; 7 epochs of
LAION-400M in batches of 32,768; AdamW (0.9, 0.95), weight decay 0.2 on kernels, learning rate 8e-6
for each 256 of the batch, 1,600 steps of warm-up, cosine.
Left open by the study, which does not train it: all but configs/clip.py. For study images have 160
px (25 patches of 49) and texts 8 of 16 tokens, a block of each.
Otherwise than published, for paper: SentencePiece in place of BERT's pieces; texts are cut at their
end, without syntax masking, which gains most where they are shortest; no class token.
Expect: paper 59.7% of ImageNet zero-shot before tuning and 63.2% after, from two days on 8 A100.
"""

from pathlib import Path
import runpy

from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError
from clip_jax.optim import adamw
from clip_jax.schedules import warmup_cosine

BASE = runpy.run_path(str(Path(__file__).with_name("clip.py")))  # From wherever it is started.


def get_config(settings="study"):
  """The config of a run at the study's settings or of the paper's."""
  if settings not in ("study", "paper"):
    raise UserError(f"configs/clipa.py:{settings} does not exist; there are study, paper.")
  config = BASE["get_config"]()
  if settings == "study":
    return resized(config, size=160, length=8, shorten="block")
  config.data.batch_size = 32_768
  config.data.views.images.image = call(
      ImageView, crop=call(RandomResizedCrop, size=112, scale=(0.4, 1.0)))
  config.model.image.update(patch=16, positions="sincos2d")
  config.model.text.update(width=512, heads=8, mask_padding=False)
  config.optimizer = call(
      adamw, learning_rate=8e-6 * 32_768 / 256, b2=0.95, weight_decay=0.2, decayed=(".*/kernel",),
      schedule=call(warmup_cosine, warmup=1600))
  config.train.samples = "2.8B"
  return resized(config, size=112, length=16, shorten="first")


def resized(config, *, size, length, shorten):
  """The config, for images of another size and texts of another length."""
  config.model.image.image_size = config.data.views.images.image.crop.size = size
  config.model.text.length = config.data.views.tokenizer.length = length
  config.data.views.shorten = shorten
  return config
