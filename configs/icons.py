"""Learns what icons show from a third of a million of them, on a laptop's CPU.

  python -m clip_jax.prepare --from=package --format=iconify --max_side=48 --pixels --out=icons
  python -m clip_jax.prepare --from=configs/icons.py --format=source --tokenizer=icons/4k.model
  python -m clip_jax.train --config=configs/icons.py --workdir=DIR
  python -m clip_jax.train --config=configs/icons.py:FOLDER --workdir=DIR    # icons elsewhere

docs/icons.md says where the icons come from.

Takes 20 min on 2 CPU cores (Intel Xeon with AMX, shared with other work; 26 CPU-min for the first
1,550 of 2,000 steps), and is then the model that `clip_jax.load("icons")` loads. Zero-shot among
the 300 names that most sets share, it gets 73.1% (standard error 0.9) of 2,724 icons of 25 sets
that were left out of training, and 79.0% (1.5) of 701 icons of val. Measured at commit 3e46aeb with
jax 0.10.2 and one seed; the log is configs/logs/icons.jsonl. The nearest labeled neighbour by
histograms of gradients gets 62.4%.

The image tower has no learned filters: histograms of oriented gradients at two scales, then a
hidden layer. So it costs little per icon, and the icons are seen three times. Icons with the same
caption in a batch are positives of each other, because many sets share names. `Redraw`
changes the style of icons, because sets never seen have other styles.

Source: configs/openclipart.py (text tower, hidden layer and batch size).
Not specified there, chosen here: two scales of histograms instead of a ResNet next to one,
embeddings of width 512, a hidden layer of 1,536, a learning rate of 2e-3, b2 = 0.99, a weight decay
of 0.1, and `Redraw`.
"""

from clip_jax.config import call
from clip_jax.data.augment.redraw import Redraw
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.sources.icon_records import IconRecords
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.evaluators.zero_shot import ZeroShot
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.towers.bag_of_tokens import BagOfTokens
from clip_jax.towers.hog import Hog
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config(path="icons"):
  """Builds the config for the prepared icons in a folder."""
  size, length, width = 48, 12, 512
  zero_shot = lambda split: call(
    ZeroShot, source=call(IconRecords, path=path, split=split, named=True)
  )
  return experiment(
    data=call(
      Data,
      source=call(IconRecords, path=path, split="train", coloured=0.1),
      views=call(
        Views,
        images={
          "image": call(
            ImageView,
            crop=call(RandomResizedCrop, size=size, scale=(0.75, 1.0), ratio=(0.9, 1.11)),
            augment=(call(Redraw),),
          )
        },
        tokenizer=call(SentencePiece, model=f"{path}/4k.model", context_length=length, eos=False),
      ),
      batch_size=512,
      workers=1,
      threads=1,
    ),
    model=call(
      TwoTowers,
      image=call(Hog, image_size=size, cell=(4, 8), dtype="float32"),
      text=call(BagOfTokens, vocab_size=4096, context_length=length, width=width),
      embed_dim=width,
      image_projection="mlp",
      text_projection="none",
      projection_hidden_dim=1536,
    ),
    objective=call(Clip, temperature=0.1, same_caption="positive"),
    optimizer=call(
      adamw,
      learning_rate=2e-3,
      b2=0.99,
      schedule=call(warmup_cosine, warmup=0.05),
      weight_decay=0.1,
      grad_clip_norm=1.0,
    ),
    train=call(Training, steps=2_000, log_every=50, eval_every=500, save_every=250),
    evaluators={"val": zero_shot("val")},
    final_evaluators={"held_out": zero_shot("held_out")},
  )
