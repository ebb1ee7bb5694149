"""Writes a run of this version and its exports to tests/golden/clip_jax/VERSION; see README.md.

JAX_PLATFORMS=cpu python tests/golden/make_clip_jax.py
"""

import json
from pathlib import Path
import shutil
import sys
import tempfile

sys.path = [p for p in sys.path if Path(p) != Path(__file__).parent]  # It has a clip_jax/, too.

import jax
from ml_collections.config_dict import ConfigDict
import numpy as np

import clip_jax
from clip_jax import export
from clip_jax.config import call
from clip_jax.data import (
  ColorJitter,
  HorizontalFlip,
  ImageView,
  Mixture,
  OpenClipart,
  RandomResizedCrop,
  SentencePiece,
  Subset,
  Views,
)
from clip_jax.evaluators import FewShot, Retrieval, ZeroShot
from clip_jax.model import TwoTowers
from clip_jax.objectives import Clip
from clip_jax.towers import TextTransformer, Vit
from clip_jax.training import Data, Training, adamw, experiment, warmup_cosine

FOLDER = Path(__file__).parent / "clip_jax" / clip_jax.__version__
STEPS, SIZE, LENGTH = 3, 32, 16
TEXTS = ["a red flag", "Two cats, sleeping on a RED sofa!", "icon of a house", "x"]
# Formats of the towers that each library has; big_vision's have other towers.
OPENAI = ("open_clip", "huggingface", "stablehlo")


def make_config(**towers) -> ConfigDict:
  """A run of a few steps, of parts of every kind."""
  source = call(
    Mixture,
    sources={
      "train": call(OpenClipart, split="train"),
      "few": call(Subset, source=call(OpenClipart, split="train"), size=100),
    },
    weights={"train": 3.0, "few": 1.0},
  )
  part = lambda split: call(Subset, source=call(OpenClipart, split=split), size=150)
  return experiment(
    seed=1,
    data=call(
      Data,
      source=source,
      views=call(
        Views,
        images={
          "image": call(
            ImageView,
            crop=call(RandomResizedCrop, size=SIZE, scale=(0.4, 1.0)),
            augment=(call(HorizontalFlip), call(ColorJitter)),
          )
        },
        tokenizer=call(SentencePiece, model="openclipart-1k", context_length=LENGTH),
      ),
      batch_size=16,
      threads=2,
    ),
    model=call(TwoTowers, embed_dim=12, **towers),
    objective=call(Clip, keep_patches=0.5),
    optimizer=call(adamw, learning_rate=1e-2, schedule=call(warmup_cosine, warmup=1)),
    train=call(Training, steps=STEPS, log_every=1),
    final_evaluators={
      "retrieval": call(Retrieval, source=call(OpenClipart, split="val"), limit=200),
      "zero_shot": call(
        ZeroShot, source=call(OpenClipart, split="val"), classes=OpenClipart.classes, limit=200
      ),
      "few_shot": call(
        FewShot, train=part("train"), test=part("val"), classes=OpenClipart.classes, shots=(1,)
      ),
    },
  )


def towers(library: str) -> dict[str, ConfigDict]:
  """Calls of the smallest towers that can be written in the library's formats."""
  sizes = dict(width=16, depth=2, mlp_dim=64, num_heads=2, dtype="float32")
  text = dict(sizes, vocab_size=1024, context_length=LENGTH)
  if library == "big_vision":
    return dict(
      image=call(Vit, patch=8, image_size=SIZE, **sizes),
      text=call(TextTransformer, pool="last", mask_padding=False, **text),
    )
  openai = dict(norm_eps=1e-5, activation="gelu")
  return dict(
    image=call(
      Vit,
      patch=8,
      image_size=SIZE,
      pool="tok",
      class_position=True,
      pre_norm=True,
      patch_bias=False,
      **openai,
      **sizes,
    ),
    text=call(TextTransformer, pool="eot", causal=True, **openai, **text),
  )


def outputs(where: Path, prefix: str = "") -> dict[str, np.ndarray]:
  """The embeddings of fixed images and texts."""
  embedder = clip_jax.load(where)
  image = np.random.default_rng(0).integers(0, 256, (4, 40, 60, 3)).astype(np.uint8)
  return {
    "image": image,
    "texts": np.array(TEXTS),
    f"{prefix}z_image": embedder.encode_image(list(image)),
    f"{prefix}z_text": embedder.encode_text(TEXTS),
    f"{prefix}scale": np.float32(embedder.scale),
    f"{prefix}bias": np.float32(embedder.bias),
  }


def next_loss(config: ConfigDict, workdir: Path, copy: Path) -> np.float32:
  """The loss of one more step, in a copy of the workdir."""
  shutil.copytree(workdir, copy)
  config.train.steps, config.final_evaluators = STEPS + 1, {}
  clip_jax.run(config, copy)
  lines = map(json.loads, (copy / "metrics.jsonl").read_text().splitlines())
  return np.float32(next(x["train/loss"] for x in lines if x["step"] > STEPS))


def main() -> None:
  # Exported programs name the files that their operations come from.
  jax.config.update("jax_hlo_source_file_canonicalization_regex", r".*/(?=clip_jax/|tests/)")
  shutil.rmtree(FOLDER, ignore_errors=True)
  with tempfile.TemporaryDirectory() as scratch:
    run, other = Path(scratch) / "run", Path(scratch) / "other"
    clip_jax.run(make_config(**towers("openai")), run)
    for name in ("config.json", "metrics.jsonl"):
      (FOLDER / "workdir").mkdir(parents=True, exist_ok=True)
      shutil.copy(run / name, FOLDER / "workdir")
    shutil.copytree(run / "checkpoints", FOLDER / "workdir/checkpoints")
    for form in OPENAI:
      export.main([f"--model={run}", f"--format={form}", f"--out={FOLDER / form}"])
    config = make_config(**towers("big_vision"))
    config.final_evaluators = {}
    clip_jax.run(config, other)
    file = FOLDER / "big_vision.npz"
    export.main([f"--model={other}", "--format=big_vision", f"--out={file}"])
    np.savez_compressed(
      FOLDER / "outputs.npz",
      **outputs(run),
      **{k: x for k, x in outputs(other, "big_vision_").items() if k.startswith("big_vision_")},
      next_loss=next_loss(make_config(**towers("openai")), run, Path(scratch) / "copy"),
    )


if __name__ == "__main__":
  main()
