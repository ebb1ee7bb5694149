"""Exports a model: python -m clip_jax.export --model=MODEL --format=F --out=DIR."""

from typing import TYPE_CHECKING

from clip_jax.cli.command import run_command

if TYPE_CHECKING:
  from pathlib import Path

  from ml_collections.config_dict import ConfigDict

  from clip_jax.pretrained.model_card import Origin

HELP = """Exports a model to a format that other libraries load.

  python -m clip_jax.export --model=MODEL --format=FORMAT --out=DIR

  --model=MODEL        the workdir of a training run, an exported model, or another library's
                       checkpoint
  --format=open_clip   open_clip.create_model_and_transforms("local-dir:DIR")
          =huggingface transformers.CLIPModel (or SiglipModel) .from_pretrained("DIR")
          =big_vision  a two-tower .npz; --out=FILE.npz
          =stablehlo   jax.export.deserialize(...).call(images); needs no model code
          =onnx        onnxruntime.InferenceSession("DIR/encode_image.onnx"); needs no JAX
          =clip_jax    clip_jax.load("DIR"); any model, in float16 with its tokenizer
  --out=DIR            created if it does not exist
  --licence=NAME       licence of the weights, for the model card, such as cc-by-4.0
  --push=ORG/NAME      also upload what was written to this repository of the Hugging Face Hub; a
                       new one is private (needs the [hub] extra and a login)
  --public             a new repository is public
  --trust=MODULE,...   modules outside clip_jax that the model's config may call

Next to the model there is a model card, README.md, with its data, training, metrics of the last
step and licences, and training_config.json with every value of the config, without the names of
folders. For big_vision, the card is FILE.md. A README.md that export did not write is kept.

Weights are written in float32, and embeddings match the original model's to 1e-4, or to bfloat16
precision if the original computes in bfloat16. --format=clip_jax writes float16; cosine
similarities change by about 0.001.

Exit codes: 0 done, 2 a mistake in the command, 130 stopped by Ctrl-C, 1 any other error.
"""
FORMATS = ("clip_jax", "open_clip", "huggingface", "big_vision", "stablehlo", "onnx")


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from pathlib import Path

  from clip_jax.cli.flags import parse
  from clip_jax.cli.suggest import did_you_mean
  from clip_jax.errors import UserError

  flags = parse(
    arguments,
    HELP,
    strings=("model", "format", "out", "licence", "push", "trust"),
    switches=("public",),
  )
  where = flags.model
  if not where:
    raise UserError("Which model? Set --model=MODEL, such as the workdir of a training run.")
  if flags.format not in FORMATS:
    head = f"--format={flags.format} is not" if flags.format else "Which format? Set --format to"
    hint = did_you_mean(flags.format or "", FORMATS)
    raise UserError(f"{head} one of {', '.join(FORMATS)}.{hint}")
  if not flags.out:
    raise UserError("No output given. Set --out=DIR.")
  if (flags.format == "big_vision") != flags.out.endswith(".npz"):
    raise UserError(
      f"--out={flags.out}: --format=big_vision writes a FILE.npz, the other formats "
      "write a directory."
    )
  if flags.push and flags.format == "big_vision":
    raise UserError("--push uploads a directory. Set another --format, or leave out --push.")
  if flags.public and not flags.push:
    raise UserError("--public is about the repository of --push=ORG/NAME, which is not set.")
  from clip_jax.inference.loading import describe, load_bundle
  from clip_jax.pretrained import (
    big_vision,
    hub,
    hugging_face,
    model_card,
    onnx_models,
    open_clip,
    packaged,
    stablehlo,
  )

  if flags.push:
    hub.check_push(flags.push)
  trust = tuple(filter(None, (flags.trust or "").split(",")))
  described = describe(where, trust=trust)
  write = {
    "clip_jax": lambda saved, out: packaged.write(described, saved, out),
    "open_clip": open_clip.write,
    "huggingface": hugging_face.write,
    "big_vision": big_vision.write,
    "stablehlo": stablehlo.write,
    "onnx": onnx_models.write,
  }[flags.format]
  out, saved = Path(flags.out), load_bundle(where, trust=trust)
  before = _files(out)
  write(saved, out)
  origin = _origin(where, described.config, flags.licence or "")
  kept = model_card.write(saved, flags.format, out, origin)
  print(f"Wrote {where} to {flags.out} in {flags.format} format.")
  if kept:
    print(f"{kept} is not a card that export wrote, so it is kept. Remove it to get a card.")
  if saved.decoder is not None:
    print("The text decoder is not part of an export: captions need the workdir of the run.")
  if flags.push:
    mine = [name for name, state in _files(out).items() if before.get(name) != state]
    print(f"Uploaded to {hub.push(out, mine, flags.push, public=flags.public)}.")
  return 0


def _files(folder: "Path") -> dict[str, tuple[int, int]]:
  """Inode and time of every file of a folder, by which one that is written anew differs."""
  return {
    str(path.relative_to(folder)): (path.stat().st_ino, path.stat().st_mtime_ns)
    for path in folder.rglob("*")
    if path.is_file()
  }


def _origin(where: str, config: "ConfigDict | None", licence: str) -> "Origin":
  """Collects what the model card says about a run, or about another library's checkpoint."""
  from pathlib import Path

  import clip_jax
  from clip_jax.cli.version import commit
  from clip_jax.pretrained import run_checkpoint
  from clip_jax.pretrained.model_card import Origin
  from clip_jax.training.history import Record
  from clip_jax.training.metrics import evaluation_metrics

  version = clip_jax.__version__ + (f" at commit {c}" if (c := commit()) else "")
  if config is None:
    return Origin(where, None, 0, 0, {}, version, licence)
  workdir = Path(where)
  step = max(run_checkpoint.steps_in(workdir.absolute() / "checkpoints"))
  record = Record.read(workdir)
  samples = record.history.samples(step) if record else step * config.data.batch_size
  metrics = {n: x for n, x in evaluation_metrics(workdir, step).items() if x is not None}
  return Origin(where, config, step, samples, metrics, version, licence)


if __name__ == "__main__":
  run_command(main)
