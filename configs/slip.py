"""SLIP: CLIP combined with SimCLR on two more views of each image.

  python -m clip_jax.train --config=configs/slip.py --workdir=DIR \
      --config.data.source.path=data/pairs --config.data.views.tokenizer.model=data/32k.model

The argument is study (the default) or paper, as in --config=configs/slip.py:paper, which uses a
tokenizer from the package. A step runs the image tower on three views of each image. The authors
have not run this config.

Source, study: Li, Xie, Cubuk 2024: configs/clip.py with the losses and views of Mu et al.
Source, paper: Mu et al. 2022 and its code: ViT-B/16 with a class token; OpenAI's text tower of
width 512 with context length 77; YFCC15M (titles and descriptions sampled equally), 25 epochs with
batch size 4,096; AdamW (0.9, 0.98, 1e-8), learning rate 3e-3, weight decay 0.1 on all parameters
except vectors, one epoch of warm-up, cosine decay to 1e-5; head 4096-4096-256, temperature 0.1,
both losses weighted 1; crops with scale 0.5 to 1 for the image paired with the text and 0.08 to 1
for the views, which also get colour distortion, greyscale, blur and horizontal flip.
Not specified, study: the weight of SimCLR (here 1, as published), and what is not specified for
configs/clip.py. The image paired with the text is cropped as published.
Differences from the publication, paper: the image tower is initialised by Glorot's scheme and the
text tower by OpenAI's, not as in timm; CLIP's loss has its full gradient (the published code drops
the half that flows through other images and texts), so the learning rate may not be optimal.
Expect: paper reaches 42.8% zero-shot accuracy on ImageNet, compared with 37.6% for CLIP; study with
10, 100 and 3,400 million pairs reaches 25.6, 55.4 and 60.3%, compared with 14.8, 52.5 and 60.4 for
CLIP (digitised from the study's fig. 17).
"""

from clip_jax.configs import clip as clip_config

from clip_jax.config import call
from clip_jax.data.augment.simclr import SimclrColors
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.tokenizer import ClipBpe
from clip_jax.data.views import ImageView
from clip_jax.errors import UserError
from clip_jax.objectives.slip import Slip
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config(settings="study"):
  """Builds the config with the settings of the study or the paper."""
  if settings not in ("study", "paper"):
    raise UserError(f"configs/slip.py:{settings} does not exist; choose from study, paper.")
  config = clip_config.get_config()
  config.objective = call(Slip, pairs=config.objective, chunk_size=1024)
  view = lambda least: call(ImageView, crop=call(RandomResizedCrop, size=224, scale=(least, 1.0)))
  config.data.views.images = {"image": view(0.5), "view_a": view(0.08), "view_b": view(0.08)}
  config.augment = {"view_a": call(SimclrColors), "view_b": call(SimclrColors)}
  if settings == "paper":
    config.data.views.tokenizer = call(ClipBpe, context_length=77)
    config.data.batch_size = 4096
    config.train.samples, config.train.epochs = None, 25.0
    config.model.mean, config.model.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.model.image.update(patch=16, pool="tok", activation="gelu")
    config.model.text.update(
      width=512,
      num_heads=8,
      vocab_size=ClipBpe.vocab_size,
      context_length=77,
      causal=True,
      pool="eot",
      activation="quick_gelu",
    )
    config.optimizer = call(
      adamw,
      learning_rate=3e-3,
      eps=1e-8,
      weight_decay=0.1,
      schedule=call(warmup_cosine, warmup=1 / 25, end=1 / 300),
      decay_params=(".*/kernel", ".*/embedding", ".*/positions", ".*/class_token"),
    )
  return config
