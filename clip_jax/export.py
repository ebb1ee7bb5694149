"""Writes a model as others read it: python -m clip_jax.export --from=MODEL --format=F --out=DIR."""

from clip_jax import cli

HELP = """Writes a model as other libraries load it.

  python -m clip_jax.export --from=MODEL --format=FORMAT --out=DIR

  --from=MODEL         the workdir of a training run, an exported model, or another library's
                       checkpoint
  --format=open_clip   open_clip.create_model_and_transforms("local-dir:DIR")
          =huggingface transformers.CLIPModel (or SiglipModel) .from_pretrained("DIR")
          =big_vision  a two-tower .npz; --out=FILE.npz
          =stablehlo   jax.export.deserialize(...).call(images), no model code needed
  --out=DIR            made when missing
  --trust=MODULE,...   modules beyond clip_jax that the model's config may call

Weights are written in float32 and agree to 1e-4; a run that computes in bfloat16 agrees with what
is written to the rounding of that.

Exit codes: 0 done, 2 a mistake in what was asked for, 130 stopped by Ctrl-C, 1 anything else.
"""
FORMATS = ("open_clip", "huggingface", "big_vision", "stablehlo")


def main(arguments: list[str]) -> int:
  """Runs the command; returns its exit code."""
  from pathlib import Path

  from clip_jax.errors import UserError
  from clip_jax.flags import parse
  flags = parse(arguments, HELP, strings=("from", "format", "out", "trust"))
  where = getattr(flags, "from")
  if not where:
    raise UserError("Which model? Set --from=MODEL, such as the workdir of a training run.")
  if flags.format not in FORMATS:
    raise UserError(f"--format={flags.format} is not one of {', '.join(FORMATS)}.")
  if not flags.out:
    raise UserError("Where should it be written? Set --out=DIR.")
  if (flags.format == "big_vision") != flags.out.endswith(".npz"):
    raise UserError(f"--out={flags.out}: big_vision's is a FILE.npz, the others are directories.")
  from clip_jax.loading import read
  from clip_jax.pretrained import big_vision, hugging_face, open_clip, stablehlo
  write = {"open_clip": open_clip.write, "huggingface": hugging_face.write,
           "big_vision": big_vision.write, "stablehlo": stablehlo.write}[flags.format]
  trust = tuple(filter(None, (flags.trust or "").split(",")))
  write(read(where, trust=trust), Path(flags.out))
  print(f"{where} is now in {flags.out}, as {flags.format}.")
  return 0


if __name__ == "__main__":
  cli.command(main)
