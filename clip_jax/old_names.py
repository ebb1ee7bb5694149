"""Names that configs were saved with before, and what they are called today.

`config.from_json` passes every saved config through `modernise`. When a part moves or an argument
is renamed, add the old name here; tests/golden/clip_jax has a workdir of each released format.
"""

from collections.abc import Callable
from typing import Any

_LOSS = {"block": "chunk_size"}
_TRANSFORMER = {"mlp": "mlp_dim", "heads": "num_heads", "epsilon": "norm_eps"}
_TEXT = {"vocabulary": "vocab_size", "length": "context_length"}
_OPTIMIZER = {"clip": "grad_clip_norm", "decayed": "decay_params", "frozen": "freeze_params"}


def _resize_mode(arguments: dict[str, Any]) -> dict[str, Any]:
  """`RandomResizedCrop(squash=)` became `resize_mode=`."""
  if "squash" in arguments:
    arguments["resize_mode"] = "squash" if arguments.pop("squash") else "keep_aspect"
  return arguments


# Old name -> (today's public name, renamed arguments, further change of the arguments).
RENAMED: dict[str, tuple[str, dict[str, str], Callable[[dict], dict] | None]] = {
  f"clip_jax.{old}": (f"clip_jax.{new}", arguments, change)
  for old, new, arguments, change in (
    ("experiment:Data", "training.Data", {}, None),
    (
      "experiment:Training",
      "training.Training",
      {"keep": "max_checkpoints", "start_from": "init_from"},
      None,
    ),
    ("optim:adamw", "training.adamw", _OPTIMIZER, None),
    ("optim:scaling_vit_adafactor", "training.scaling_vit_adafactor", _OPTIMIZER, None),
    ("schedules:warmup_cosine", "training.warmup_cosine", {}, None),
    ("schedules:warmup_rsqrt", "training.warmup_rsqrt", {}, None),
    ("schedules:warmup_constant", "training.warmup_constant", {}, None),
    ("sharding:make_mesh", "parallel.make_mesh", {}, None),
    (
      "model:TwoTowers",
      "model.TwoTowers",
      {"embed": "embed_dim", "hidden": "projection_hidden_dim"},
      None,
    ),
    ("objectives.clip:Clip", "objectives.Clip", _LOSS, None),
    ("objectives.siglip:Siglip", "objectives.Siglip", _LOSS, None),
    ("objectives.flip:flip", "objectives.flip", _LOSS, None),
    ("objectives.slip:Slip", "objectives.Slip", {**_LOSS, "hidden": "projection_hidden_dim"}, None),
    ("towers.vit:Vit", "towers.Vit", _TRANSFORMER, None),
    (
      "towers.text:TextTransformer",
      "towers.TextTransformer",
      {**_TRANSFORMER, **_TEXT, "end_token": "eos_id"},
      None,
    ),
    ("towers.bag:BagOfTokens", "towers.BagOfTokens", _TEXT, None),
    ("towers.beside:Beside", "towers.ConcatTowers", {}, None),
    ("towers.clip_resnet:ClipResnet", "towers.ClipResnet", _TRANSFORMER, None),
    ("towers.convnext:ConvNext", "towers.ConvNext", {}, None),
    ("towers.hog:Hog", "towers.Hog", {}, None),
    (
      "towers.mixer:MlpMixer",
      "towers.MlpMixer",
      {**_TRANSFORMER, "token_mlp": "token_mlp_dim"},
      None,
    ),
    ("towers.resnet:BitResnet", "towers.BitResnet", {}, None),
    ("towers.swin:Swin", "towers.Swin", {}, None),
    ("augment.simclr:SimclrColours", "data.SimclrColors", {"grey": "grayscale"}, None),
    ("data.colour:ColourJitter", "data.ColorJitter", {"grey": "grayscale"}, None),
    ("data.flip:HorizontalFlip", "data.HorizontalFlip", {}, None),
    ("data.randaugment:RandAugment", "data.RandAugment", {}, None),
    (
      "data.crops:RandomResizedCrop",
      "data.RandomResizedCrop",
      {"shrink": "jpeg_draft", "resize": "interpolation"},
      _resize_mode,
    ),
    (
      "data.crops:Resize",
      "data.Resize",
      {"mode": "resize_mode", "central": "center_crop", "shrink": "jpeg_draft"},
      None,
    ),
    ("data.two_step:TwoStep", "data.ResizeThenCrop", {"mode": "resize_mode"}, None),
    ("data.quality:Quality", "data.ScoreFilter", {}, None),
    ("data.subset:Subset", "data.Subset", {}, None),
    ("data.records:ArrayRecord", "data.ArrayRecord", {}, None),
    ("data.sources.folder:Folder", "data.Folder", {}, None),
    ("data.sources.mixture:Mixture", "data.Mixture", {}, None),
    ("data.sources.openclipart:OpenClipart", "data.OpenClipart", {}, None),
    ("data.sources.parquet:Parquet", "data.Parquet", {}, None),
    ("data.sources.shapes:Shapes", "data.Shapes", {}, None),
    ("data.sources.tfds:Tfds", "data.Tfds", {}, None),
    ("data.tokenizer:SentencePiece", "data.SentencePiece", {"length": "context_length"}, None),
    ("data.tokenizer:ClipBpe", "data.ClipBpe", {"length": "context_length"}, None),
    ("data.tokenizer_file:TokenizerFile", "data.TokenizerJson", {"length": "context_length"}, None),
    ("data.tokenizer_file:Cleaned", "data.CleanedTokenizer", {}, None),
    ("data.tokenizer_file:NoTokenizer", "data.MissingTokenizer", _TEXT, None),
    ("data.views:ImageView", "data.ImageView", {}, None),
    ("data.views:Views", "data.Views", {}, None),
    ("evaluators.few_shot:FewShot", "evaluators.FewShot", {}, None),
    ("evaluators.labelled:Labelled", "evaluators.LabeledSet", {}, None),
    ("evaluators.linear_probe:LinearProbe", "evaluators.LinearProbe", {}, None),
    ("evaluators.regression:Lbfgs", "evaluators.Lbfgs", {}, None),
    ("evaluators.regression:Sgd", "evaluators.Sgd", {}, None),
    ("evaluators.retrieval:Retrieval", "evaluators.Retrieval", _LOSS, None),
    ("evaluators.robustness:Robustness", "evaluators.Robustness", {}, None),
    ("evaluators.zero_shot:ZeroShot", "evaluators.ZeroShot", {}, None),
  )
}


def current(name: str) -> str:
  """Today's public name of a function or class, given any name it was ever saved under."""
  return RENAMED[name][0] if name in RENAMED else name


def modernise(value: Any) -> Any:
  """A saved config as plain JSON values, with today's names of calls and arguments."""
  if isinstance(value, list):
    return [modernise(v) for v in value]
  if not isinstance(value, dict):
    return value
  value = {name: modernise(v) for name, v in value.items()}
  if value.get("fn") not in RENAMED:
    return value
  new, renamed, change = RENAMED[value["fn"]]
  arguments = {renamed.get(n, n): v for n, v in value.items() if n != "fn"}
  return {"fn": new, **(change(arguments) if change else arguments)}
