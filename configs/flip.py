"""FLIP: CLIP that drops half of each image's patches and doubles the batch size.

  python -m clip_jax.train --config=configs/flip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as in --config=configs/flip.py:paper. After either,
run configs/flip_tuning.py to train briefly on whole images. The authors have not run this config.

Source, study: Li, Xie, Cubuk 2024: configs/clip.py with half of the patches and batch size 32,768.
Source, paper: Li et al. 2023 and its code: ViT-L/16 with fixed position embeddings; a text tower of
width 768 with 12 blocks, context length 32 and unmasked padding; half of the patches; 12.8 billion
samples of LAION-400M with batch size 65,536; AdamW (0.9, 0.95), weight decay 0.2 on kernels and
embeddings, learning rate 4e-6 per 256 examples of the batch, warm-up over 0.4% of the run, cosine
decay to 0; crops with scale 0.5 to 1 and horizontal flips.
Not specified, study: the same as for configs/clip.py.
Differences from the publication, paper: SentencePiece instead of BERT's WordPiece; the last token
is pooled instead of the first; no class token; position embeddings as in MoCo v3; the temperature
is clipped to its bound after the update instead of inside the loss.
Expect: paper reaches 74.3% zero-shot accuracy on ImageNet after tuning, in half the time of CLIP,
which reaches 72.4%; study with 10, 100 and 3,400 million pairs reaches 10.4, 54.0 and 59.4%,
compared with 14.8, 52.5 and 60.4 for CLIP (digitised from the study's fig. 17).
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError
from clip_jax.objectives.flip import flip
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config(settings="study"):
  """Builds the config with the settings of the study or the paper."""
  if settings not in ("study", "paper"):
    raise UserError(f"configs/flip.py:{settings} does not exist; choose from study, paper.")
  config = clip_config.get_config()
  config.objective = call(flip, keep_patches=0.5, chunk_size=1024)
  config.data.batch_size = 32_768
  if settings == "paper":
    config.data.batch_size = 65_536
    config.data.views.images.image = call(
      ImageView,
      crop=call(RandomResizedCrop, size=224, scale=(0.5, 1.0)),
      augment=(call(HorizontalFlip),),
    )
    config.data.views.tokenizer.update(context_length=32, sticky_eos=True)
    config.model.embed_dim = 768
    config.model.image.update(size="L", patch=16, positions="sincos2d")
    config.model.text.update(
      width=768, depth=12, num_heads=12, context_length=32, mask_padding=False
    )
    config.optimizer = call(
      adamw,
      learning_rate=4e-6 * 65_536 / 256,
      b2=0.95,
      weight_decay=0.2,
      schedule=call(warmup_cosine, warmup=0.004),
    )
    config.train.samples = "12.8B"
  return config
