"""Reads and writes the tokenizer files in a checkpoint's directory."""

from collections.abc import Mapping
import json
from pathlib import Path
from typing import Any

from ml_collections.config_dict import ConfigDict

from clip_jax.cli import values
from clip_jax.config import call
from clip_jax.data import tokenizer as shipped
from clip_jax.data.checkpoint_tokenizer import CleanedTokenizer, TokenizerJson
from clip_jax.data.untrusted import read_json
from clip_jax.errors import UserError
from clip_jax.files import write_atomically
from clip_jax.interfaces import Tokenizer

SETTINGS, PIECES = "tokenizer_config.json", "spiece.model"
# Type hints of the fields that are read.
_OPTIONS: dict[str, Any] = dict(
  clean=str | None,
  context_length=values.ContextLength,
  lower=bool,
  bos=bool,
  eos=bool,
  sticky_eos=bool,
)
_SETTINGS: dict[str, Any] = dict(
  tokenizer_class=str | None,
  pad_token=str | Mapping[str, Any] | None,
  sep_token=str | Mapping[str, Any] | None,
  clip_jax=Mapping[str, Any] | None,
)


def settings(folder: Path) -> dict:
  """Returns the content of a directory's tokenizer_config.json; {} if there is none.

  Raises:
    UserError: it is malformed.
  """
  file = folder / SETTINGS
  if not file.is_file():
    return {}
  found = read_json(file, dict, "Download it again.")
  values.check_fields(found, _SETTINGS, str(file))
  return found


def padding(folder: Path, *, default: int) -> int:
  """Returns the id of the padding token that tokenizer_config.json names, or else `default`.

  The arguments and errors are those of `special_token`.
  """
  return special_token(folder, "pad_token", default=default)


def special_token(folder: Path, name: str, *, default: int) -> int:
  """Returns the id of a token that tokenizer_config.json names, or else `default`.

  The ids come from the tokenizer.json in the same directory.

  Raises:
    UserError: one of the files is malformed.
  """
  token = settings(folder).get(name)
  token = token.get("content") if isinstance(token, dict) else token
  file = folder / "tokenizer.json"
  try:
    return _numbers(read_json(file, dict, "Download it again.")).get(token, default)
  except (KeyError, TypeError, ValueError, AttributeError) as error:
    if isinstance(error, UserError):
      raise
    raise UserError(f"The vocabulary in {file} is malformed. Download it again.") from error


def end_token(text: ConfigDict, tokenizer: Tokenizer, there: str) -> int:
  """Returns the id of the end token that a text tower with pool="eot" pools at.

  If the tower does not set it, it is the tokenizer's end token.

  Args:
    text: the call of the text tower.
    tokenizer: the model's tokenizer.
    there: name of the format in the error message.

  Raises:
    UserError: neither the tower nor the tokenizer determines an end token.
  """
  if text.eos_id is not None:
    return text.eos_id
  if isinstance(tokenizer, shipped.ClipBpe):
    return tokenizer.eos_id
  if isinstance(tokenizer, shipped.SentencePiece) and tokenizer.eos and not tokenizer.sticky_eos:
    return tokenizer.eos_id
  raise UserError(
    f'{there} pools at a fixed end token, but this model\'s pool="eot" pools at the '
    "last token that is not padding. Train with a tokenizer that adds an end token."
  )


def bundled_tokenizer(folder: Path) -> ConfigDict | None:
  """Returns the call of the SentencePiece tokenizer that `write` saved in a directory.

  Returns None if `write` saved none there.
  """
  options = dict(settings(folder).get("clip_jax") or {})
  if not options:
    return None
  if "length" in options:  # Its name in early exports.
    options["context_length"] = options.pop("length")
  values.check_fields(options, _OPTIONS, f"{folder / SETTINGS}, clip_jax")
  if unknown := sorted(options.keys() - _OPTIONS.keys()):
    raise UserError(f"{folder / SETTINGS}: clip_jax has unknown options: {', '.join(unknown)}.")
  clean = options.pop("clean", None)
  made = call(shipped.SentencePiece, model=str((folder / PIECES).absolute()), **options)
  return call(CleanedTokenizer, tokenizer=made, clean=clean) if clean else made


def write(tokenizer: Tokenizer, folder: Path, *, clean: str | None = None) -> None:
  """Writes a tokenizer's files to a directory, in Hugging Face's layout.

  Hugging Face's SentencePiece tokenizer strips punctuation and cannot add a begin token, so this
  package's own options are saved too, under "clip_jax" in tokenizer_config.json, for
  `bundled_tokenizer`.

  Args:
    tokenizer: the tokenizer to write.
    folder: the directory.
    clean: the text cleaning applied before the tokenizer, saved with the options.
  """
  if isinstance(tokenizer, shipped.ClipBpe):
    _write_clip(tokenizer, folder)
  elif isinstance(tokenizer, shipped.SentencePiece):
    write_atomically(folder / PIECES, tokenizer.model)
    _save(
      folder / SETTINGS,
      {
        "tokenizer_class": "SiglipTokenizer",
        "do_lower_case": tokenizer.lower,
        "model_max_length": tokenizer.context_length,
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "</s>" if tokenizer.sticky_eos else "<pad>",
        "clip_jax": {
          "clean": clean,
          **{
            name: getattr(tokenizer, name)
            for name in ("context_length", "lower", "bos", "eos", "sticky_eos")
          },
        },
      },
    )
  elif isinstance(tokenizer, CleanedTokenizer):
    write(tokenizer.tokenizer, folder, clean=tokenizer.clean)
  elif isinstance(tokenizer, TokenizerJson):
    if tokenizer.blank is not None:
      raise UserError(
        f"A tokenizer that replaces token {tokenizer.blank} by 0, as CLIPA's, cannot be stored in "
        "this layout. Export the model to stablehlo or onnx, or keep the run."
      )
    made = json.loads(tokenizer.json)
    write_atomically(folder / "tokenizer.json", tokenizer.json)
    pad = {number: token for token, number in _numbers(made).items()}.get(tokenizer.padding)
    _save(
      folder / SETTINGS,
      {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": pad,
        "model_max_length": tokenizer.context_length,
      },
    )


def _write_clip(tokenizer, folder):
  """Writes OpenAI's vocabulary and merges."""
  vocabulary = shipped.clip_vocabulary()
  write_atomically(folder / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
  merges = "\n".join(" ".join(pair) for pair in shipped.clip_merges())
  write_atomically(folder / "merges.txt", f"#version: 0.2\n{merges}\n")
  start, end = "<|startoftext|>", "<|endoftext|>"
  _save(
    folder / SETTINGS,
    {
      "tokenizer_class": "CLIPTokenizer",
      "model_max_length": tokenizer.context_length,
      "bos_token": start,
      "eos_token": end,
      "unk_token": end,
      "pad_token": end,
    },
  )


def _save(path, value):
  write_atomically(path, json.dumps(value, indent=2) + "\n")


def _numbers(made):
  """Returns the ids of a tokenizer.json's tokens, by token."""
  vocabulary = made["model"].get("vocab", {})
  if not isinstance(vocabulary, dict):  # Unigram models store a list of (token, score) pairs.
    vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
  return vocabulary | {entry["content"]: entry["id"] for entry in made.get("added_tokens", ())}
