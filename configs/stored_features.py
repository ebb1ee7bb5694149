"""Trains a text tower on stored image features, which `clip-jax embed` has written (LiT).

  clip-jax embed --model=MODEL --source=SOURCE --out=DIR
  python -m clip_jax.train --config=configs/stored_features.py:DIR --workdir=RUN \
      --config.data.source.source.path=SOURCE

The argument is the folder of the embeddings; their manifest names the model. The image tower is
frozen and does not run in training. The result is a whole model, which evaluations, `load` and
export use with images. For projections only, set in the optimizer
freeze_params=("model/image/.*", "model/text/.*") and text="features" in the views.

Source: frozen image tower as in LiT (Zhai et al. 2022); learning rate, weight decay and crops as in
configs/finetune.py, but ten times the learning rate, because the image tower cannot be damaged.
Not specified: a number of epochs that suits every data set.
Expect: depends on the model and the data. The authors have not run this config.
"""

from pathlib import Path

from clip_jax.config import call
from clip_jax.data.embedding_store import read_manifest
from clip_jax.data.records import ArrayRecord
from clip_jax.data.sources.with_embeddings import WithEmbeddings
from clip_jax.data.stored_views import StoredViews
from clip_jax.errors import UserError
from clip_jax.inference.loading import describe
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.siglip import Siglip
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config(folder=""):
  """Builds the config for the embeddings in a folder."""
  if not folder:
    raise UserError(
      "Which embeddings? Name their folder after a colon, configs/stored_features.py:DIR; clip-jax "
      "embed writes it."
    )
  model = read_manifest(Path(folder).expanduser())["model"]["from"]
  start = describe(model)
  return experiment(
    data=call(
      Data,
      source=call(WithEmbeddings, source=call(ArrayRecord, path="data/pairs"), path=folder),
      views=call(StoredViews, tokenizer=start.tokenizer, preprocess=start.preprocess),
      batch_size=1024,
    ),
    model=start.model,
    objective=call(Siglip) if start.biased else call(Clip),
    optimizer=call(
      adamw,
      learning_rate=1e-4,
      schedule=call(warmup_cosine, warmup=0.1),
      weight_decay=0.1,
      grad_clip_norm=1.0,
      freeze_params=("model/image/.*",),
    ),
    train=call(Training, epochs=10.0, init_from=model, init_logit=True),
  )
