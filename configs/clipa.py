"""CLIPA: CLIP on small images and short texts.

  python -m clip_jax.train --config=configs/clipa.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as in --config=configs/clipa.py:paper. After either,
run configs/clipa_tuning.py to train briefly at full size. The authors have not run this config.

Source, paper: Li, Wang, Xie 2023 and its code: ViT-B/16 at 112 px (49 patches) with fixed position
embeddings; a text tower of width 512 with context length 16 and unmasked padding; crops with scale
0.4 to 1; 7 epochs of LAION-400M with batch size 32,768; AdamW (0.9, 0.95), weight decay 0.2 on
kernels, learning rate 8e-6 per 256 examples of the batch, 1,600 steps of warm-up, cosine decay.
Not specified, study: the study does not train CLIPA. Here it is configs/clip.py with images of 160
px (25 patches instead of 49) and 8 text tokens instead of 16, consecutive ones from a random start.
Differences from the publication, paper: SentencePiece instead of BERT's WordPiece; texts truncated
at the end instead of syntax masking, which helps most with the shortest texts; no class token.
Expect: paper reaches 59.7% zero-shot accuracy on ImageNet before tuning and 63.2% after, in two
days on 8 A100.
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config(settings="study"):
  """Builds the config with the settings of the study or the paper."""
  if settings not in ("study", "paper"):
    raise UserError(f"configs/clipa.py:{settings} does not exist; choose from study, paper.")
  config = clip_config.get_config()
  if settings == "study":
    return resized(config, size=160, length=8, shorten="block")
  config.data.batch_size = 32_768
  config.data.views.images.image = call(
    ImageView, crop=call(RandomResizedCrop, size=112, scale=(0.4, 1.0))
  )
  config.model.image.update(patch=16, positions="sincos2d")
  config.model.text.update(width=512, num_heads=8, mask_padding=False)
  config.optimizer = call(
    adamw,
    learning_rate=8e-6 * 32_768 / 256,
    b2=0.95,
    weight_decay=0.2,
    decay_params=(".*/kernel",),
    schedule=call(warmup_cosine, warmup=1600),
  )
  config.train.samples = "2.8B"
  return resized(config, size=112, length=16, shorten="first")


def resized(config, *, size, length, shorten):
  """Changes the config's image size, context length and way of shortening texts."""
  config.model.image.image_size = config.data.views.images.image.crop.size = size
  config.model.text.context_length = config.data.views.tokenizer.context_length = length
  config.data.views.shorten = shorten
  return config
