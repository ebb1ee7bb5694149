"""FLIP: CLIP that sees half of each image's patches, with batches twice as large.

  python -m clip_jax.train --config=configs/flip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as in --config=configs/flip.py:paper. After either,
configs/flip_tuning.py trains a little on whole images. Not run here.

From Li, Xie, Cubuk 2024, for study: configs/clip.py, half of the patches, batch 32,768.
From Li et al. 2023 and its code, for paper: ViT-L/16 with fixed positions, a text tower of width
768 and 12 blocks with 32 tokens whose padding is not hidden; half of the patches; 12.8 billion
samples of LAION-400M in batches of 65,536; AdamW (0.9, 0.95), weight decay 0.2 on kernels and
embeddings, learning rate 4e-6 for each 256 of the batch, warm-up 0.4%, cosine to 0; crops 0.5 to 1
and mirror images.
Left open by the study: what configs/clip.py says. Otherwise than published, for paper:
SentencePiece in place of BERT's pieces; the last token is pooled, not the first; no class token;
positions are MoCo v3's form; the temperature stops at its bound after the update, not inside the
loss.
Expect: paper 74.3% of ImageNet zero-shot after tuning, at half the time of CLIP's 72.4%; study at
10, 100 and 3,400 million pairs 10.4, 54.0 and 59.4%, where CLIP has 14.8, 52.5 and 60.4 (its fig.
17, digitised).
"""

from pathlib import Path
import runpy

from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.flip import HorizontalFlip
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError
from clip_jax.objectives.flip import flip
from clip_jax.optim import adamw
from clip_jax.schedules import warmup_cosine

BASE = runpy.run_path(str(Path(__file__).with_name("clip.py")))  # From wherever it is started.


def get_config(settings="study"):
  """The config of the study's run or of the paper's."""
  if settings not in ("study", "paper"):
    raise UserError(f"configs/flip.py:{settings} does not exist; there are study, paper.")
  config = BASE["get_config"]()
  config.objective = call(flip, keep_patches=0.5, block=1024)
  config.data.batch_size = 32_768
  if settings == "paper":
    config.data.batch_size = 65_536
    config.data.views.images.image = call(
        ImageView, crop=call(RandomResizedCrop, size=224, scale=(0.5, 1.0)),
        augment=(call(HorizontalFlip),))
    config.data.views.tokenizer.update(length=32, sticky_eos=True)
    config.model.embed = 768
    config.model.image.update(size="L", patch=16, positions="sincos2d")
    config.model.text.update(width=768, depth=12, heads=12, length=32, mask_padding=False)
    config.optimizer = call(
        adamw, learning_rate=4e-6 * 65_536 / 256, b2=0.95, weight_decay=0.2,
        schedule=call(warmup_cosine, warmup=0.004))
    config.train.samples = "12.8B"
  return config
