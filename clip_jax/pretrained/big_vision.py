"""big_vision's two-tower checkpoints: a single .npz file with arrays keyed by path.

Source: models/vit.py and models/proj/image_text/{text_transformer,two_towers}.py in big_vision.
"""

import logging
import math
from pathlib import Path

import numpy as np

from clip_jax.config import call
from clip_jax.data.checkpoint_tokenizer import MissingTokenizer
from clip_jax.data.npz_file import UnreadableNpz, read_npz
from clip_jax.data.resize_then_crop import ResizeThenCrop
from clip_jax.data.tokenizer import SentencePiece
from clip_jax.errors import UserError
from clip_jax.files import atomic_write
from clip_jax.model.two_towers import TwoTowers
from clip_jax.pretrained import model_bundle
from clip_jax.pretrained.model_bundle import (
  Description,
  ModelBundle,
  complete_spec,
  part_name,
  require,
  require_plain,
)
from clip_jax.pretrained.name_table import Name, of, prefixed, square_patch
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit


def _pair(theirs, ours):
  return prefixed(f"{theirs}/", f"{ours}/", [Name("kernel", "kernel"), Name("bias", "bias")])


def _norm(theirs, ours):
  return prefixed(f"{theirs}/", f"{ours}/", [Name("scale", "scale"), Name("bias", "bias")])


def _mlp(theirs, ours):
  return [*_pair(f"{theirs}/Dense_0", f"{ours}/up"), *_pair(f"{theirs}/Dense_1", f"{ours}/down")]


_ATTENTION = "MultiHeadDotProductAttention_0"
BLOCK = [
  *_norm("LayerNorm_0", "norm_attention"),
  *(
    row
    for i, name in enumerate(("query", "key", "value"))
    for row in (
      Name(f"{_ATTENTION}/{name}/kernel", "attention/qkv/kernel", of(i, 1)),
      Name(f"{_ATTENTION}/{name}/bias", "attention/qkv/bias", of(i, 0)),
    )
  ),
  *_pair(f"{_ATTENTION}/out", "attention/out"),
  *_norm("LayerNorm_1", "norm_mlp"),
  *_mlp("MlpBlock_0", "mlp"),
]
HEAD = [
  Name("probe", "probe", lambda x: x[None, None]),
  *_pair(f"{_ATTENTION}/query", "query"),
  *(
    row
    for i, name in enumerate(("key", "value"))
    for row in (
      Name(f"{_ATTENTION}/{name}/kernel", "key_value/kernel", of(i, 1)),
      Name(f"{_ATTENTION}/{name}/bias", "key_value/bias", of(i, 0)),
    )
  ),
  *_pair(f"{_ATTENTION}/out", "out"),
  *_norm("LayerNorm_0", "norm"),
  *_mlp("MlpBlock_0", "mlp"),
]
TABLE = [
  Name("img/embedding/kernel", "image/embedding/kernel", square_patch),
  Name("img/embedding/bias", "image/embedding/bias"),
  Name("img/pos_embedding", "image/positions", lambda x: x[None]),
  Name("img/cls", "image/class_token", lambda x: x[None, None]),
  *prefixed("img/Transformer/encoderblock_{}/", "image/stack/blocks/", BLOCK),
  *_norm("img/Transformer/encoder_norm", "image/norm"),
  *prefixed("img/MAPHead_0/", "image/head/", HEAD),
  *_pair("img/head", "image_projection"),
  Name("txt/Embed_0/embedding", "text/embedding"),
  Name("txt/pos_embedding", "text/positions", lambda x: x[None]),
  *prefixed("txt/Encoder_0/encoderblock_{}/", "text/stack/blocks/", BLOCK),
  *_norm("txt/Encoder_0/encoder_norm", "text/norm"),
  *prefixed("txt/MAPHead_0/", "text/head/", HEAD),
  *_pair("txt/head", "text_projection"),
  Name("t", "log_scale", lambda x: x[None]),
]
BIAS = [Name("b", "bias", lambda x: x[None])]


def describe(path: Path) -> Description:
  """Describes the model in a .npz file; the errors are those of `read`."""
  return _described(path, _arrays(path))


def read(path: Path, text_pool: str | None = None) -> ModelBundle:
  """Reads a model from a .npz file and infers its architecture from the array shapes.

  The file does not record how images were preprocessed. As for SigLIP, they are squashed to the
  size implied by the position embeddings, with pixels in [-1, 1]. The tokenizer is not in the file
  either; it is read from the SentencePiece model (*.model) in the same folder, if there is exactly
  one. How texts are pooled can only be seen for "map".

  Args:
    path: the file.
    text_pool: "last", "mean" or "max", as the config of the model said. By default "last", as in
      SigLIP and LiT, with a warning.

  Raises:
    UserError: the file is not such a .npz, or arrays are missing, unexpected or misshapen.
  """
  arrays = _arrays(path)
  table = TABLE + (BIAS if "b" in arrays else [])
  return model_bundle.read(_described(path, arrays, text_pool), table, arrays, str(path))


def _described(path, arrays, text_pool=None):
  """Returns the description of a model."""
  model = _model(arrays, str(path), text_pool)
  text = model.text
  files = sorted(path.parent.glob("*.model"))
  if len(files) == 1:
    tokenizer = call(
      SentencePiece,
      model=str(files[0].absolute()),
      context_length=text.context_length,
      sticky_eos=True,
    )
  else:
    tokenizer = call(
      MissingTokenizer,
      why=f"{path} does not include its tokenizer. Put its SentencePiece model, and no "
      f"other *.model file, into {path.parent}.",
      context_length=text.context_length,
      vocab_size=text.vocab_size,
    )
  preprocess = call(
    ResizeThenCrop, size=model.image.image_size, resize_mode="squash", interpolation="bilinear"
  )
  return Description(model, preprocess, tokenizer, "b" in arrays, "corner_bilinear")


def _arrays(path):
  """Returns the arrays below "params/" by path, with stacked blocks split into single ones."""
  try:
    arrays = read_npz(
      path, lambda names: [name for name in names if name.startswith("params/")] or names
    )
  except (UnreadableNpz, OSError) as error:
    raise UserError(f"{path} is not an .npz file of plain arrays: {error}") from error
  out = {}
  for name, x in arrays.items():
    name = name.removeprefix("params/")
    if "/encoderblock/" in name and x.ndim:
      for i, block in enumerate(x):
        out[name.replace("/encoderblock/", f"/encoderblock_{i}/")] = block
    else:
      out[name] = x
  return out


# big_vision's names of ways to pool texts, and ours.
TEXT_POOLS = {"last": "last", "mean": "gap", "gap": "gap", "max": "max", "gmp": "max"}


def _text_pool(arrays, where, given):
  """Returns our name of how texts are pooled."""
  if given is not None and given not in TEXT_POOLS:
    raise UserError(f"text_pool={given!r} is not one of {', '.join(map(repr, TEXT_POOLS))}.")
  if "txt/MAPHead_0/probe" in arrays:
    if given is not None:
      raise UserError(f"{where} pools texts with a MAPHead, not by {given!r}. Leave text_pool out.")
    return "map"
  if given is None:
    logging.getLogger("clip_jax").warning(
      f"{where} does not say how texts are pooled. Assuming the last token, as in SigLIP and LiT; "
      'pass text_pool="mean" or "max" to load otherwise.'
    )
  return TEXT_POOLS[given or "last"]


def _model(arrays, where, text_pool):
  """Returns the call of the model, inferred from its arrays."""
  wanted = (
    "img/embedding/kernel",
    "img/pos_embedding",
    "txt/Embed_0/embedding",
    "txt/pos_embedding",
    "t",
  )
  missing = [name for name in wanted if name not in arrays]
  if missing:
    raise UserError(f"{where} is not a big_vision two-tower model: it lacks {', '.join(missing)}.")

  def shape(name, axis=0):
    if name not in arrays:
      raise UserError(f"{where} is not a big_vision two-tower model: it lacks {name}.")
    if arrays[name].ndim <= axis:
      raise UserError(f"{where}: {name} has the shape {arrays[name].shape}.")
    return arrays[name].shape[axis]

  def sizes(prefix):
    block = f"{prefix}encoderblock_0/"
    return dict(
      width=shape(f"{block}LayerNorm_0/scale"),
      mlp_dim=shape(f"{block}MlpBlock_0/Dense_0/bias"),
      depth=sum(
        n.startswith(f"{prefix}encoderblock_") and n.endswith("LayerNorm_0/scale") for n in arrays
      ),
      num_heads=shape(f"{block}{_ATTENTION}/query/bias"),
      dtype="float32",
    )

  patch, N = shape("img/embedding/kernel"), shape("img/pos_embedding", 1)
  side = math.isqrt(N)
  if side * side != N:
    raise UserError(
      f"{where} has {N} image positions, which is not a square number. Only square "
      "images are supported."
    )
  head = lambda tower: "affine" if f"{tower}/head/kernel" in arrays else "none"
  pool = "map" if "img/MAPHead_0/probe" in arrays else "tok" if "img/cls" in arrays else "gap"
  return call(
    TwoTowers,
    image=call(Vit, patch=patch, image_size=side * patch, pool=pool, **sizes("img/Transformer/")),
    text=call(
      TextTransformer,
      vocab_size=shape("txt/Embed_0/embedding"),
      context_length=shape("txt/pos_embedding", 1),
      pool=_text_pool(arrays, where, text_pool),
      mask_padding=False,
      **sizes("txt/Encoder_0/"),
    ),
    embed_dim=shape("txt/head/kernel", 1)
    if head("txt") == "affine"
    else shape("txt/Embed_0/embedding", 1),
    image_projection=head("img"),
    text_projection=head("txt"),
  )


def write(saved: ModelBundle, path: Path) -> None:
  """Writes a .npz file that big_vision's `two_towers.load` reads.

  Raises:
    UserError: big_vision has no equivalent of the model.
  """
  model = complete_spec(saved.model)
  if (part_name(model.image), part_name(model.text)) != ("Vit", "TextTransformer"):
    raise UserError(
      f"big_vision has no equivalent of {part_name(model.image)} with "
      f"{part_name(model.text)}. {model_bundle.EXPORTABLE}"
    )
  there = "big_vision"
  for spec, name in ((model.image, "Vit"), (model.text, "TextTransformer")):
    require_plain(spec, name, there)
    require(spec, name, there, norm_eps=1e-6, activation="gelu_tanh", pre_norm=False)
    require(spec, name, there, positions="learned")
  require(
    model.image,
    "Vit",
    there,
    class_position=False,
    pool=("gap", "tok", "map"),
    patch_bias=True,
  )
  pools = ("last", "gap", "max", "map")
  require(model.text, "TextTransformer", there, causal=False, pool=pools, mask_padding=False)
  require(model, "the model", there, mean=((0.5,) * 3,), std=((0.5,) * 3,))
  arrays = model_bundle.written(saved, TABLE + (BIAS if saved.bias else []))
  for name, tower in (("image", "img"), ("text", "txt")):
    if model[f"{name}_projection"] == "linear":
      arrays[f"{tower}/head/bias"] = np.zeros(model.embed_dim, np.float32)
  path.parent.mkdir(parents=True, exist_ok=True)
  with atomic_write(path, "wb") as f:
    np.savez(f, allow_pickle=False, **{f"params/{name}": x for name, x in arrays.items()})
