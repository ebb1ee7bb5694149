"""A run that compiles in a second: tiny towers on synthetic scenes. Argument: number of steps."""

from clip_jax.config import call
from clip_jax.data.crops import Resize
from clip_jax.data.sources.shapes import Shapes
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.evaluators.retrieval import Retrieval
from clip_jax.model.two_towers import TwoTowers
from clip_jax.objectives.clip import Clip
from clip_jax.towers.bag_of_tokens import BagOfTokens
from clip_jax.towers.vit import Vit
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine

STEPS = 12


def get_config(steps=str(STEPS)):
  scenes = lambda size, seed: call(Shapes, size=size, image_size=16, seed=seed)
  return experiment(
    data=call(
      Data,
      source=scenes(60, 0),
      views=call(
        Views,
        images={"image": call(ImageView, crop=call(Resize, size=16))},
        tokenizer=call(SentencePiece, context_length=8),
      ),
      batch_size=8,
      threads=2,
    ),
    model=call(
      TwoTowers,
      image=call(Vit, size="mu", patch=8, image_size=16, dtype="float32"),
      text=call(BagOfTokens, vocab_size=4096, context_length=8, width=16),
      embed_dim=16,
    ),
    objective=call(Clip),
    optimizer=call(adamw, learning_rate=1e-3, schedule=call(warmup_cosine, warmup=1)),
    train=call(Training, steps=int(steps), log_every=1, eval_every=5, save_every=3),
    evaluators={"val": call(Retrieval, source=scenes(8, 1))},
    final_evaluators={"test": call(Retrieval, source=scenes(8, 2))},
  )
