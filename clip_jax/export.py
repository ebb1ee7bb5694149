"""Exports a model: python -m clip_jax.export --model=MODEL --format=F --out=DIR."""

from clip_jax.cli.command import run_command

HELP = """Exports a model to a format that other libraries load.

  python -m clip_jax.export --model=MODEL --format=FORMAT --out=DIR

  --model=MODEL        the workdir of a training run, an exported model, or another library's
                       checkpoint
  --format=open_clip   open_clip.create_model_and_transforms("local-dir:DIR")
          =huggingface transformers.CLIPModel (or SiglipModel) .from_pretrained("DIR")
          =big_vision  a two-tower .npz; --out=FILE.npz
          =stablehlo   jax.export.deserialize(...).call(images); needs no model code
          =clip_jax    clip_jax.load("DIR"); any model, in float16 with its tokenizer
          =onnx        onnxruntime.InferenceSession("DIR/encode_image.onnx"); needs no JAX
  --out=DIR            created if it does not exist
  --trust=MODULE,...   modules outside clip_jax that the model's config may call

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
  from clip_jax.errors import UserError

  flags = parse(arguments, HELP, strings=("model", "format", "out", "trust"))
  where = flags.model
  if not where:
    raise UserError("Which model? Set --model=MODEL, such as the workdir of a training run.")
  if flags.format not in FORMATS:
    raise UserError(f"--format={flags.format} is not one of {', '.join(FORMATS)}.")
  if not flags.out:
    raise UserError("No output given. Set --out=DIR.")
  if (flags.format == "big_vision") != flags.out.endswith(".npz"):
    raise UserError(
      f"--out={flags.out}: --format=big_vision writes a FILE.npz, the other formats "
      "write a directory."
    )
  from clip_jax.inference.loading import describe, load_bundle
  from clip_jax.pretrained import (
    big_vision,
    hugging_face,
    onnx_models,
    open_clip,
    packaged,
    stablehlo,
  )

  trust = tuple(filter(None, (flags.trust or "").split(",")))
  write = {
    "clip_jax": lambda saved, out: packaged.write(describe(where, trust=trust), saved, out),
    "open_clip": open_clip.write,
    "huggingface": hugging_face.write,
    "big_vision": big_vision.write,
    "stablehlo": stablehlo.write,
    "onnx": onnx_models.write,
  }[flags.format]
  write(load_bundle(where, trust=trust), Path(flags.out))
  print(f"Wrote {where} to {flags.out} in {flags.format} format.")
  return 0


if __name__ == "__main__":
  run_command(main)
