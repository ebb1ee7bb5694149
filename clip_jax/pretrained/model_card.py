"""The model card of an export: a README.md as the Hugging Face Hub shows it."""

from collections.abc import Mapping
import dataclasses
import json
from pathlib import Path, PurePosixPath
from typing import Any

import jax
from ml_collections.config_dict import ConfigDict

from clip_jax.config import calls, from_json, function, modules, parameters_of, short_name, to_json
from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, TokenizerJson
from clip_jax.data.tokenizer import ClipBpe, SentencePiece
from clip_jax.data.untrusted import read_json
from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.pretrained.model_bundle import ModelBundle, complete_spec, part_name, preprocessing

CARD, CONFIG = "README.md", "training_config.json"
_MARK = "exported by clip_jax "  # In every card, which a later export may replace.
# What an exported model is loaded with, and a program that does so; {} is the folder.
_LIBRARIES = {
  "open_clip": (
    "open_clip",
    'import open_clip\n\nmodel, _, preprocess = open_clip.create_model_and_transforms("{}")\n'
    'tokenize = open_clip.get_tokenizer("{}")',
  ),
  "huggingface": (
    "transformers",
    'import transformers\n\nmodel = transformers.AutoModel.from_pretrained("{}")',
  ),
  "clip_jax": ("clip_jax", 'import clip_jax\n\nmodel = clip_jax.load("{}")'),
  "big_vision": ("clip_jax", 'import clip_jax\n\nmodel = clip_jax.load("{}")'),
  "stablehlo": (
    "jax",
    "from pathlib import Path\n\nfrom jax import export\n\n"
    'program = Path("{}/encode_image.stablehlo").read_bytes()\n'
    "z_image = export.deserialize(bytearray(program)).call(pixels)",
  ),
  "onnx": (
    "onnx",
    'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{}/encode_image.onnx")\n'
    '(z_image,) = session.run(["embedding"], {"image": pixels})',
  ),
}
_TOKENIZERS = (ClipBpe, SentencePiece, CleanedTokenizer, TokenizerJson)  # Their files are written.
# Licences of the bundled data, by the source's class.
_LICENCES = {"OpenClipart": "public domain (Open Clip Art)", "Shapes": "none needed: synthetic"}


@dataclasses.dataclass(frozen=True)
class Origin:
  """Where an exported model is from.

  Attributes:
    name: the model, as the command named it.
    config: the config of its training run; None for another library's checkpoint.
    step: number of training steps; 0 if unknown.
    samples: number of examples seen in training; 0 if unknown.
    metrics: evaluations of the last step, as "evaluator/metric".
    version: version and commit, as "0.1.0 at commit abc", of the clip_jax that exported the model.
    licence: licence of the weights, as the user states it; "" if not stated.
  """

  name: str
  config: ConfigDict | None
  step: int
  samples: int
  metrics: Mapping[str, float]
  version: str
  licence: str = ""


def write(saved: ModelBundle, form: str, out: Path, origin: Origin) -> Path | None:
  """Writes the card of an export, and training_config.json if there is a config and a folder.

  Args:
    saved, form, origin: as for `card`.
    out: the folder of the export, which gets README.md; or a file, which gets a card next to it.

  Returns:
    The path of a file that somebody else wrote in the place of the card, and that was kept.
  """
  path = out / CARD if out.is_dir() else out.with_suffix(".md")
  foreign = path.exists() and _MARK not in path.read_text("utf-8", "replace")
  if not foreign:
    write_atomically(path, card(saved, form, out.name, origin))
  if origin.config is not None and out.is_dir():
    write_atomically(out / CONFIG, to_json(without_folders(origin.config)) + "\n")
  return path if foreign else None


def card(saved: ModelBundle, form: str, folder: str, origin: Origin) -> str:
  """Returns the text of the card.

  Args:
    saved: the model.
    form: the format of the export, a value of `--format`.
    folder: name of the export's folder.
    origin: where the model is from.
  """
  library, program = _LIBRARIES[form]
  location = f"local-dir:{folder}" if form == "open_clip" else folder
  parts = [
    _front_matter(library, origin.licence),
    f"# {PurePosixPath(origin.name).name}\n\nA model that compares images and texts (CLIP), "
    f"{_MARK}{origin.version}.",
    f"## Use\n\n```python\n{program.replace('{}', location)}\n```\n\n{_inputs(saved, form)}",
    f"## Model\n\n{_model(saved)}",
    f"## Training data\n\n{_data(origin)}",
    f"## Training\n\n{_training(origin)}",
    f"## Metrics\n\n{_metrics(origin)}",
    f"## Licence\n\n{_licence(origin)}",
  ]
  return "\n\n".join(parts) + "\n"


def _front_matter(library, licence):
  lines = [f"library_name: {library}", "pipeline_tag: zero-shot-image-classification"]
  lines += [f"license: {json.dumps(licence)}"] if licence else []
  return "\n".join(["---", *lines, "tags: [clip, clip_jax]", "---"])


def _inputs(saved, form):
  size = getattr(saved.preprocess, "size", None)
  if form not in ("stablehlo", "onnx") or size is None:
    return "Images are preprocessed and texts tokenized as the files of this folder describe."
  text = complete_spec(saved.model).text
  return (
    f"`encode_image` takes RGB pixels, uint8 [B, {size[0]}, {size[1]}, 3], resized as "
    "`shapes.json` says under `preprocess`, and normalises them itself. `encode_text` takes "
    f"tokens, int32 [B, {text.context_length}], of the tokenizer named below. Both return unit "
    f"vectors; the logit of a pair is {saved.scale:.6g} times their product plus {saved.bias:.6g}."
  )


def _model(saved):
  model = complete_spec(saved.model)
  count = sum(x.size for x in jax.tree.leaves(saved.params))
  towers = [f"- {kind} tower: `{call_text(model[kind])}`" for kind in ("image", "text")]
  tokenizer = type(saved.tokenizer).__name__
  if not isinstance(saved.tokenizer, _TOKENIZERS):
    tokenizer = f"not in this folder ({tokenizer})"
  return "\n".join(
    [
      *towers,
      f"- {count:,} parameters; embeddings of size {model.embed_dim}",
      f"- preprocessing: {type(saved.preprocess).__name__}, "
      + ", ".join(f"{n} {v}" for n, v in preprocessing(saved).items()),
      f"- tokenizer: {tokenizer}",
    ]
  )


def _data(origin):
  if origin.config is None:
    return f"Not known here: the weights are those of {origin.name}. See its own card."
  data = without_folders(origin.config).data
  lines = [f"`{call_text(data.source)}`"]
  for manifest in _manifests(origin.config.data.source):
    stated = {n: manifest.get(n) for n in ("records", "source") if manifest.get(n)}
    lines.append("- " + ", ".join(f"{n}: {v}" for n, v in stated.items()))
  return "\n".join(lines)


def _training(origin):
  if origin.config is None:
    return "Not known here."
  config = without_folders(origin.config)
  return "\n".join(
    [
      f"- objective: `{call_text(config.objective)}`",
      f"- {origin.samples:,} samples in {origin.step:,} steps; batch {config.data.batch_size:,}",
      f"- optimizer: `{call_text(config.optimizer)}`",
      f"- every value: [{CONFIG}]({CONFIG})",
    ]
  )


def _metrics(origin):
  if not origin.metrics:
    return "None: the run has not evaluated its last step. Measure it with `clip-jax evaluate`."
  rows = [f"| {name} | {value:.4g} |" for name, value in sorted(origin.metrics.items())]
  return "\n".join(
    [
      f"At step {origin.step:,}, in percent where a rate:\n",
      "| metric | value |",
      "|---|---|",
      *rows,
    ]
  )


def _licence(origin):
  weights = origin.licence or "not stated; state one with `clip-jax export --licence=NAME`"
  lines = [f"- weights: {weights}"]
  if origin.config is not None:
    source = origin.config.data.source
    named = [_LICENCES[n] for one in calls(source) if (n := part_name(one)) in _LICENCES]
    for manifest in _manifests(source):
      values = manifest.get("values", {})
      counted = values.get("license") or values.get("licence") or ["not stated in its manifest"]
      named.append(str(manifest.get("licence") or ", ".join(map(str, counted))))
    lines.append(f"- training data: {'; '.join(named) or 'not known'}")
  return "\n".join(lines)


def _manifests(source):
  """Yields the manifests of the prepared records that a source reads, as far as they are there."""
  for one in calls(source):
    path = one.get("path")
    if isinstance(path, str) and (Path(path) / "manifest.json").is_file():
      try:
        yield read_json(Path(path) / "manifest.json", dict, "Prepare the records again.")
      except UserError:
        continue


def call_text(value: Any) -> str:
  """Returns a call of a config as Python text without default arguments, as in `Vit(patch=32)`."""
  if isinstance(value, ConfigDict) and "fn" in value:
    known = parameters_of(function(value.fn))
    shown = [
      f"{n}={call_text(v)}"
      for n, v in value.items()
      if n != "fn" and not (n in known and _same(known[n].default, v))
    ]
    return f"{short_name(value.fn)}({', '.join(shown)})"
  if isinstance(value, (tuple, list)):
    return f"({', '.join(map(call_text, value))}{',' if len(value) == 1 else ''})"
  if isinstance(value, (ConfigDict, Mapping)):
    return "{" + ", ".join(f"{n!r}: {call_text(v)}" for n, v in value.items()) + "}"
  return repr(value)


def _same(default, value):
  plain = lambda x: list(x) if isinstance(x, tuple) else x
  return plain(default) == plain(value)


def without_folders(config: ConfigDict) -> ConfigDict:
  """Returns a copy of a config in which absolute paths are only file names.

  A card is published, and the folders of the machine that trained are nobody's business.
  """

  def walk(value):
    if isinstance(value, dict):
      return {n: walk(v) for n, v in value.items()}
    if isinstance(value, list):
      return [walk(v) for v in value]
    is_path = isinstance(value, str) and PurePosixPath(value).is_absolute()
    return PurePosixPath(value).name if is_path else value

  return from_json(json.dumps(walk(json.loads(to_json(config)))), trust=modules(config))
