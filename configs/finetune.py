"""Fine-tunes any model that `clip_jax.load` reads, keeping its preprocessing and logit scale.

  python -m clip_jax.train --config=configs/finetune.py:MODEL --workdir=DIR \
      --config.data.source.path=FOLDER --config.train.epochs=5

MODEL is the workdir of a run, a directory of open_clip or Hugging Face, a .npz of big_vision, or
hf-hub:ORG/NAME. FOLDER has images and a table captions.csv with the columns image and caption. The
towers, the tokenizer, the normalisation, the resize mode and interpolation, the logit scale and the
bias are those of MODEL; training, evaluation, `load` and export all use them. The page
docs/finetuning.md has variants: frozen towers (LiT), the last blocks only, mixing back.

Source: learning rate and weight decay in the range that fine-tuning of CLIP models uses (Dong et
al. 2022, "CLIP Itself is a Strong Fine-tuner"; Wortsman et al. 2022, WiSE-FT: 1e-5, weight decay
0.1), crops as in open_clip (0.9 to 1 of the area).
Not specified: a number of epochs that suits every data set.
Expect: depends on MODEL and the data. The authors have not run this config.
"""

from clip_jax.config import call
from clip_jax.data.sources.folder import Folder
from clip_jax.data.views import Views
from clip_jax.errors import UserError
from clip_jax.inference.loading import describe
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.siglip import Siglip
from clip_jax.pretrained.tuning_view import tuning_view
from clip_jax.training.experiment import Data, Training, experiment
from clip_jax.training.optim import adamw
from clip_jax.training.schedules import warmup_cosine


def get_config(model="", trust=()):
  """Builds the config.

  Args:
    model: what to start from.
    trust: modules outside clip_jax that the config of a run may call.
  """
  if not model:
    raise UserError(
      "Which model should be fine-tuned? Name it after a colon: --config=configs/finetune.py:MODEL,"
      " where MODEL is the workdir of a run, another library's checkpoint, or hf-hub:ORG/NAME."
    )
  start = describe(model, trust=trust)
  towers = start.model.copy_and_resolve_references()
  for tower in (towers.image, towers.text):
    if start.config is None and "dtype" in tower:
      tower.dtype = "auto"  # Other libraries' models are described in float32.
  return experiment(
    data=call(
      Data,
      source=call(Folder, path="data/pairs", captions="captions.csv"),
      views=call(
        Views,
        images={"image": tuning_view(start)},
        tokenizer=start.tokenizer,
        preprocess=start.preprocess,
      ),
      batch_size=256,
    ),
    model=towers,
    objective=call(Siglip) if start.biased else call(Clip),
    optimizer=call(
      adamw,
      learning_rate=1e-5,
      schedule=call(warmup_cosine, warmup=0.1),
      weight_decay=0.1,
      grad_clip_norm=1.0,
    ),
    train=call(Training, epochs=5.0, init_from=str(model), init_logit=True),
  )
