"""Five times the quickstart, with RandAugment in place of colours, on the same drawings.

  python -m clip_jax.train --config=configs/openclipart.py --workdir=DIR

Takes 31 min on 2 CPU cores (Intel Xeon with AVX-512, while tests shared them; 36 CPU-min). Then on
the 459 test pairs, by their short captions: image-to-text R@10 19.0%, text-to-image R@10 21.6%
(chance 2.2%, standard error 1.8). One run, seed 0, commit c83fdc7, jax 0.10.2; its log is
configs/logs/openclipart.jsonl. A linear model from edges and colours to the words of captions has
image-to-text R@10 22.7%, which this does not reach yet.
"""

from clip_jax.config import call
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.flip import HorizontalFlip
from clip_jax.data.randaugment import RandAugment
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.experiment import Data, Training, experiment
from clip_jax.model import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.optim import adamw
from clip_jax.schedules import warmup_cosine
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.text import TextTransformer


def get_config():
  """The config of the run."""
  size, length = 48, 24
  return experiment(
      data=call(
          Data,
          source=call(OpenClipart, split="train", caption=("caption", "caption_long", "keywords")),
          views=call(
              Views,
              images={"image": call(
                  ImageView, crop=call(RandomResizedCrop, size=size, scale=(0.4, 1.0)),
                  augment=(call(HorizontalFlip),
                           call(RandAugment, operations=2, magnitude=5, fill=(255, 255, 255))))},
              tokenizer=call(SentencePiece, model="openclipart-1k", length=length, eos=False),
              captions=(0.5, 0.4, 0.1)),
          batch_size=128, threads=2),
      model=call(
          TwoTowers,
          image=call(BitResnet, stages=(1, 1, 1), width=32, block="basic", stem="small", groups=8,
                     pool="flat", image_size=size, dtype="float32"),
          text=call(TextTransformer, width=128, depth=0, vocabulary=1024, length=length,
                    pool="mean", dtype="float32"),
          embed=128),
      objective=call(Clip, temperature=0.1),
      optimizer=call(adamw, learning_rate=4e-3, schedule=call(warmup_cosine, warmup=60),
                     weight_decay=0.5, clip=1.0),
      train=call(Training, steps=3000, log_every=50, eval_every=500, save_every=250),
      evaluators={"val": call(Retrieval, source=call(OpenClipart, split="val"))},
      final_evaluators={
          "retrieval": call(Retrieval, source=call(OpenClipart, split="test")),
          "zero_shot": call(ZeroShot, source=call(OpenClipart, split="test"),
                            classes=OpenClipart.classes),
      })
