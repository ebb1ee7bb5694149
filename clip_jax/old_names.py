"""Names that configs were saved with before, and what they are called today.

`config.from_json` passes every saved config through `modernise`. When a part moves or an argument
is renamed, add its old name here; tests/golden/clip_jax has a workdir of each released format.
"""

from collections.abc import Callable
from typing import Any

from clip_jax.errors import UserError

# Old name of a function or class -> today's public name.
NAMES: dict[str, str] = {
  "clip_jax.experiment:Data": "clip_jax.training.Data",
  "clip_jax.experiment:Training": "clip_jax.training.Training",
  "clip_jax.optim:adamw": "clip_jax.training.adamw",
  "clip_jax.optim:scaling_vit_adafactor": "clip_jax.training.scaling_vit_adafactor",
  "clip_jax.schedules:warmup_cosine": "clip_jax.training.warmup_cosine",
  "clip_jax.schedules:warmup_rsqrt": "clip_jax.training.warmup_rsqrt",
  "clip_jax.schedules:warmup_constant": "clip_jax.training.warmup_constant",
  "clip_jax.sharding:make_mesh": "clip_jax.parallel.make_mesh",
  "clip_jax.model:TwoTowers": "clip_jax.model.TwoTowers",
  "clip_jax.objectives.clip:Clip": "clip_jax.objectives.Clip",
  "clip_jax.objectives.siglip:Siglip": "clip_jax.objectives.Siglip",
  "clip_jax.objectives.flip:flip": "clip_jax.objectives.flip",
  "clip_jax.objectives.slip:Slip": "clip_jax.objectives.Slip",
  "clip_jax.towers.vit:Vit": "clip_jax.towers.Vit",
  "clip_jax.towers.text:TextTransformer": "clip_jax.towers.TextTransformer",
  "clip_jax.towers.bag:BagOfTokens": "clip_jax.towers.BagOfTokens",
  "clip_jax.towers.beside:Beside": "clip_jax.towers.ConcatTowers",
  "clip_jax.towers.clip_resnet:ClipResnet": "clip_jax.towers.ClipResnet",
  "clip_jax.towers.convnext:ConvNext": "clip_jax.towers.ConvNext",
  "clip_jax.towers.hog:Hog": "clip_jax.towers.Hog",
  "clip_jax.towers.mixer:MlpMixer": "clip_jax.towers.MlpMixer",
  "clip_jax.towers.resnet:BitResnet": "clip_jax.towers.BitResnet",
  "clip_jax.towers.swin:Swin": "clip_jax.towers.Swin",
  "clip_jax.augment.simclr:SimclrColours": "clip_jax.data.SimclrColors",
  "clip_jax.data.colour:ColourJitter": "clip_jax.data.ColorJitter",
  "clip_jax.data.flip:HorizontalFlip": "clip_jax.data.HorizontalFlip",
  "clip_jax.data.randaugment:RandAugment": "clip_jax.data.RandAugment",
  "clip_jax.data.crops:RandomResizedCrop": "clip_jax.data.RandomResizedCrop",
  "clip_jax.data.crops:Resize": "clip_jax.data.Resize",
  "clip_jax.data.two_step:TwoStep": "clip_jax.data.ResizeThenCrop",
  "clip_jax.data.quality:Quality": "clip_jax.data.ScoreFilter",
  "clip_jax.data.subset:Subset": "clip_jax.data.Subset",
  "clip_jax.data.records:ArrayRecord": "clip_jax.data.ArrayRecord",
  "clip_jax.data.sources.folder:Folder": "clip_jax.data.Folder",
  "clip_jax.data.sources.mixture:Mixture": "clip_jax.data.Mixture",
  "clip_jax.data.sources.openclipart:OpenClipart": "clip_jax.data.OpenClipart",
  "clip_jax.data.sources.parquet:Parquet": "clip_jax.data.Parquet",
  "clip_jax.data.sources.shapes:Shapes": "clip_jax.data.Shapes",
  "clip_jax.data.sources.tfds:Tfds": "clip_jax.data.Tfds",
  "clip_jax.data.tokenizer:SentencePiece": "clip_jax.data.SentencePiece",
  "clip_jax.data.tokenizer:ClipBpe": "clip_jax.data.ClipBpe",
  "clip_jax.data.tokenizer_file:TokenizerFile": "clip_jax.data.TokenizerJson",
  "clip_jax.data.tokenizer_file:Cleaned": "clip_jax.data.CleanedTokenizer",
  "clip_jax.data.tokenizer_file:NoTokenizer": "clip_jax.data.MissingTokenizer",
  "clip_jax.data.views:ImageView": "clip_jax.data.ImageView",
  "clip_jax.data.views:Views": "clip_jax.data.Views",
  "clip_jax.evaluators.few_shot:FewShot": "clip_jax.evaluators.FewShot",
  "clip_jax.evaluators.labelled:Labelled": "clip_jax.evaluators.LabeledSet",
  "clip_jax.evaluators.linear_probe:LinearProbe": "clip_jax.evaluators.LinearProbe",
  "clip_jax.evaluators.regression:Lbfgs": "clip_jax.evaluators.Lbfgs",
  "clip_jax.evaluators.regression:Sgd": "clip_jax.evaluators.Sgd",
  "clip_jax.evaluators.retrieval:Retrieval": "clip_jax.evaluators.Retrieval",
  "clip_jax.evaluators.robustness:Robustness": "clip_jax.evaluators.Robustness",
  "clip_jax.evaluators.zero_shot:ZeroShot": "clip_jax.evaluators.ZeroShot",
}

_LOSS = {"block": "chunk_size"}
_MLP = {"mlp": "mlp_dim"}
_TRANSFORMER = {**_MLP, "heads": "num_heads", "epsilon": "norm_eps"}
_LENGTH = {"length": "context_length"}
_TEXT = {**_LENGTH, "vocabulary": "vocab_size"}
_OPTIMIZER = {"clip": "grad_clip_norm", "decayed": "decay_params", "frozen": "freeze_params"}

# Today's name of a part -> old name of an argument -> today's.
ARGUMENTS: dict[str, dict[str, str]] = {
  "clip_jax.data.ClipBpe": _LENGTH,
  "clip_jax.data.ColorJitter": {"grey": "grayscale"},
  "clip_jax.data.MissingTokenizer": _TEXT,
  "clip_jax.data.RandomResizedCrop": {
    "resize": "interpolation",
    "shrink": "jpeg_draft",
    "squash": "resize_mode",
  },
  "clip_jax.data.Resize": {
    "central": "center_crop",
    "mode": "resize_mode",
    "shrink": "jpeg_draft",
  },
  "clip_jax.data.ResizeThenCrop": {"mode": "resize_mode"},
  "clip_jax.data.SentencePiece": _LENGTH,
  "clip_jax.data.SimclrColors": {"grey": "grayscale"},
  "clip_jax.data.TokenizerJson": _LENGTH,
  "clip_jax.evaluators.Retrieval": _LOSS,
  "clip_jax.model.TwoTowers": {"embed": "embed_dim", "hidden": "projection_hidden_dim"},
  "clip_jax.objectives.Clip": _LOSS,
  "clip_jax.objectives.Siglip": _LOSS,
  "clip_jax.objectives.Slip": {**_LOSS, "hidden": "projection_hidden_dim"},
  "clip_jax.objectives.flip": _LOSS,
  "clip_jax.towers.BagOfTokens": _TEXT,
  "clip_jax.towers.ClipResnet": {"heads": "num_heads"},
  "clip_jax.towers.MlpMixer": {**_MLP, "token_mlp": "token_mlp_dim"},
  "clip_jax.towers.TextTransformer": {**_TRANSFORMER, **_TEXT, "end_token": "eos_id"},
  "clip_jax.towers.Vit": _TRANSFORMER,
  "clip_jax.training.Training": {"keep": "max_checkpoints", "start_from": "init_from"},
  "clip_jax.training.adamw": _OPTIMIZER,
  "clip_jax.training.scaling_vit_adafactor": _OPTIMIZER,
}

# Today's name of a part -> old name of an argument -> old value to today's.
VALUES: dict[str, dict[str, Callable[[Any], Any]]] = {
  "clip_jax.data.RandomResizedCrop": {
    "squash": lambda squash: "squash" if squash else "keep_aspect",
  },
}


def modernise(value: Any) -> Any:
  """A saved config as plain JSON values, with today's names of calls and arguments.

  Raises:
    UserError: a call has an argument under both its old and its new name.
  """
  if isinstance(value, list):
    return [modernise(v) for v in value]
  if not isinstance(value, dict):
    return value
  value = {name: modernise(v) for name, v in value.items()}
  fn = value.get("fn")
  if not isinstance(fn, str):
    return value
  fn = value["fn"] = NAMES.get(fn, fn)
  for old, new in ARGUMENTS.get(fn, {}).items():
    if old not in value:
      continue
    if new in value:
      raise UserError(f"The config passes {fn} both {old!r} and {new!r}, its new name.")
    change = VALUES.get(fn, {}).get(old, lambda x: x)
    value[new] = change(value.pop(old))
  return value
