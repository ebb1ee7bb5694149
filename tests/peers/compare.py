"""Compares the speed of clip_jax on a CPU with that of open_clip, in training and in inference.

  python tests/peers/compare.py [WORK ...] [--rounds=7] [--threads=1] [--dtypes=float32,bfloat16]
                                [--json=FILE] [--against=FILE] [--compile] [--peers=FOLDER]

A WORK is a name in `WORKS` below; all of them by default. open_clip runs in a virtual environment
of its own, which is created in FOLDER (by default next to clip_jax's caches) with open_clip_torch
from PyPI if it is not there yet. Both libraries train or apply the same model on the same shapes
and take turns on the same cores. Each turn is timed in CPU time, user and system, so that waiting
for other processes does not count. The table shows medians over the rounds.

--against=FILE compares with a file that --json wrote before, and exits with 1 if clip_jax's time
divided by open_clip's in the same run has grown by more than 10% in any row.
--compile also compiles open_clip's model with torch.compile, which needs a C++ compiler.
"""

import argparse
import json
import os
from pathlib import Path
import platform
import statistics
import subprocess
import sys
import time

ROOT = Path(__file__).parents[2]
REGRESSION = 1.1
# Name: (kind, tower, image size, batch). Ti and S have a text tower of their own width and 16
# tokens; B/32 and RN50 are OpenAI's models with 77 tokens.
WORKS = {
  "train-Ti/16": ("train", "Ti/16", 64, 64),
  "train-S/32": ("train", "S/32", 224, 32),
  "train-B/32": ("train", "B/32", 224, 16),
  "train-RN50": ("train", "RN50", 224, 16),
  "image-B/32": ("image", "B/32", 224, 32),
  "text-B/32": ("text", "B/32", 224, 32),
}
WIDTHS = {"Ti": 192, "S": 384, "B": 768}
EMBED_DIMS = {"Ti": 192, "S": 384, "B": 512, "RN": 1024}
ADAMW = dict(learning_rate=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2)
TURN = 1.0  # Minimum CPU time of a turn, in seconds.


def parse_arguments(arguments):
  """Returns the options."""
  parser = argparse.ArgumentParser(
    description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("works", nargs="*", metavar="WORK")
  parser.add_argument("--rounds", type=int, default=7)
  parser.add_argument("--threads", type=int, default=1)
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--json", type=Path)
  parser.add_argument("--against", type=Path)
  parser.add_argument("--compile", action="store_true")
  parser.add_argument("--peers", type=Path)
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  options = parser.parse_args(arguments)
  unknown = [name for name in options.works if name not in WORKS]
  if unknown:
    parser.error(f"unknown work {', '.join(unknown)}; choose from {', '.join(WORKS)}")
  return options


def main(arguments):
  options = parse_arguments(arguments)
  if options.serve:
    serve(options)
    return 0
  pythons = {"clip_jax": sys.executable, "open_clip": peer_python(options.peers)}
  rows, versions = [], {}
  for name in options.works or WORKS:
    for dtype in options.dtypes.split(","):
      times, versions = measure(name, dtype, options, pythons)
      rows.append(row(name, dtype, times))
      print(format_row(rows[-1]), flush=True)
  result = {
    "processor": processor(),
    "threads": options.threads,
    "versions": versions,
    "rows": rows,
  }
  print(f"\n{result['processor']}, {options.threads} thread(s), {versions}")
  if options.json:
    options.json.write_text(json.dumps(result, indent=1) + "\n")
  return regressions(rows, json.loads(options.against.read_text())) if options.against else 0


def peer_python(folder):
  """Returns the Python of the environment with open_clip, which is created if it is missing."""
  if folder is None:
    from clip_jax.cli.cache import caches

    folder = caches() / "peers"
  python = folder / "bin" / "python"
  if not python.exists():
    print(f"creating {folder} with open_clip_torch", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "open_clip_torch"], check=True)
  return str(python)


def measure(name, dtype, options, pythons):
  """Lets both libraries take turns; returns CPU seconds a step by library, and their versions."""
  peers = {library: start(library, name, dtype, options, pythons[library]) for library in pythons}
  versions = {library: json.loads(peer.stdout.readline()) for library, peer in peers.items()}
  times = {library: [] for library in peers}
  for _ in range(options.rounds):
    for library, peer in peers.items():
      print("turn", file=peer.stdin, flush=True)
      times[library].append(json.loads(peer.stdout.readline()))
  for peer in peers.values():
    peer.stdin.close()
    peer.wait()
  return times, versions


def start(library, name, dtype, options, python):
  """Starts a process that runs a turn for each line on its standard input."""
  command = [python, __file__, name, f"--serve={library}", f"--dtypes={dtype}"]
  command += [f"--threads={options.threads}", *(["--compile"] if options.compile else [])]
  environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(
    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
  )


def serve(options):
  """Prints the version, then for each line of input the CPU seconds of a step."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
  kind, *of = WORKS[options.works[0]]
  make = {"clip_jax": clip_jax_step, "open_clip": open_clip_step}[options.serve]
  step, version = make(kind, *of, options.dtypes, options)
  for _ in range(2):
    step()
  print(json.dumps(version), flush=True)
  for _ in sys.stdin:
    steps, cpu = 0, time.process_time()
    while time.process_time() - cpu < TURN:
      step()
      steps += 1
    print(json.dumps((time.process_time() - cpu) / steps), flush=True)


def row(name, dtype, times):
  """Medians in milliseconds, and the median and the range of the ratio of the rounds."""
  ratios = sorted(b / a for a, b in zip(times["clip_jax"], times["open_clip"]))
  medians = {library: 1e3 * statistics.median(values) for library, values in times.items()}
  return {
    "work": name,
    "dtype": dtype,
    **medians,
    "ratio": statistics.median(ratios),
    "range": [ratios[0], ratios[-1]],
  }


def format_row(row):
  """One line of the table."""
  low, high = row["range"]
  return (
    f"{row['work']:12} {row['dtype']:9} clip_jax {row['clip_jax']:7.0f} ms  open_clip "
    f"{row['open_clip']:7.0f} ms  {row['ratio']:.2f} times as fast ({low:.2f} to {high:.2f})"
  )


def regressions(rows, before):
  """Prints the rows whose ratio to open_clip fell by more than 10%; returns the exit code."""
  old = {(row["work"], row["dtype"]): row["ratio"] for row in before["rows"]}
  slower = [
    row for row in rows if old.get((row["work"], row["dtype"]), 0) > REGRESSION * row["ratio"]
  ]
  for row in slower:
    was = old[row["work"], row["dtype"]]
    print(f"slower: {row['work']} {row['dtype']}: {row['ratio']:.2f}, was {was:.2f}")
  return 1 if slower else 0


def processor():
  """Returns the processor's name, and its units for bfloat16."""
  try:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  fields = dict(line.split(":", 1) for line in lines if ":" in line)
  fields = {name.strip(): value.strip() for name, value in fields.items()}
  units = [unit for unit in ("amx_bf16", "avx512_bf16") if unit in fields.get("flags", "").split()]
  return ", ".join([fields.get("model name", platform.processor()), *units])


def text_shape(tower):
  """Width, heads and context length of the text tower."""
  width = WIDTHS.get(tower.split("/")[0], 768)
  return (width, width // 64, 16) if width < 768 else (512, 8, 77)


def clip_jax_model(tower, image_size, dtype):
  """The call of the model in OpenAI's form."""
  from clip_jax.config import call
  from clip_jax.model.two_towers import TwoTowers
  from clip_jax.towers.clip_resnet import ClipResnet
  from clip_jax.towers.text import TextTransformer
  from clip_jax.towers.vit import Vit

  width, heads, length = text_shape(tower)
  size, _, patch = tower.partition("/")
  shared = dict(norm_eps=1e-5, activation="gelu", dtype=dtype)
  openai = dict(pool="tok", class_position=True, pre_norm=True, patch_bias=False)
  image = (
    call(Vit, size=size, patch=int(patch), image_size=image_size, **openai, **shared)
    if patch
    else call(ClipResnet, size=tower, image_size=image_size, dtype=dtype)
  )
  text = call(
    TextTransformer,
    vocab_size=49_408,
    context_length=length,
    width=width,
    depth=12,
    mlp_dim=4 * width,
    num_heads=heads,
    causal=True,
    pool="eot",
    eos_id=49_407,
    mask_padding=False,
    **shared,
  )
  return call(TwoTowers, image=image, text=text, embed_dim=EMBED_DIMS[size[:2]])


def clip_jax_step(kind, tower, image_size, batch, dtype, options):
  """Returns a step of training or encoding, and the version."""
  import jax
  import numpy as np

  version = f"jax {jax.__version__}"
  model = clip_jax_model(tower, image_size, dtype)
  if kind == "train":
    return clip_jax_train_step(model, image_size, batch), version
  from flax import nnx

  from clip_jax.config import build

  rng = np.random.default_rng(0)
  made = jax.jit(lambda: build(model, rngs=nnx.Rngs(0)))()
  if kind == "image":
    x = rng.integers(0, 256, (batch, image_size, image_size, 3)).astype(np.uint8)
    encode = jax.jit(lambda model, x: model.encode_image(x))
  else:
    x = rng.integers(1, 100, (batch, text_shape(tower)[2])).astype(np.int32)
    encode = jax.jit(lambda model, x: model.encode_text(x))
  return lambda: np.asarray(encode(made, x)), version


def clip_jax_train_step(model, image_size, batch):
  """Returns a step of training with AdamW."""
  import jax

  from clip_jax.benches.bench_step import random_batch
  from clip_jax.config import call
  from clip_jax.training.optim import adamw
  from clip_jax.training.schedules import warmup_constant
  from clip_jax.training.setup import build_setup, compile_train_step, initial_state
  from configs.benchmark import get_config

  config = get_config()
  config.data.batch_size = batch
  with config.unlocked():
    config.model = model
    config.data.views.images.image.crop.size = image_size
    config.data.views.tokenizer.context_length = model.text.context_length
    config.optimizer = call(adamw, schedule=call(warmup_constant, warmup=1), **ADAMW)
  setup = build_setup(config)
  with jax.set_mesh(setup.mesh):
    inputs, train_step = random_batch(setup), compile_train_step(setup)
    state = initial_state(setup)

  def step():
    nonlocal state
    with jax.set_mesh(setup.mesh):
      state = jax.block_until_ready(train_step(state, inputs)[0])

  return step


def open_clip_step(kind, tower, image_size, batch, dtype, options):
  """Returns a step of training or encoding with open_clip, and the version."""
  import open_clip
  from open_clip.model import CLIP
  import torch

  torch.set_num_threads(options.threads)
  torch.manual_seed(0)
  width, heads, length = text_shape(tower)
  size, _, patch = tower.partition("/")
  if patch:
    shape = dict(layers=12, width=WIDTHS[size], head_width=64, patch_size=int(patch))
  else:
    shape = dict(layers=[3, 4, 6, 3], width=64)
  text = dict(context_length=length, vocab_size=49_408, width=width, heads=heads, layers=12)
  model = CLIP(EMBED_DIMS[size[:2]], dict(image_size=image_size, **shape), text)
  run = torch.compile(model) if options.compile else model
  image = torch.randint(0, 256, (batch, image_size, image_size, 3), dtype=torch.uint8)
  tokens = torch.randint(1, 100, (batch, length))
  pixels = lambda: image.permute(0, 3, 1, 2).float() / 127.5 - 1
  precision = lambda: torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16")
  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True
  )
  loss_of = open_clip.ClipLoss()

  def train():
    optimizer.zero_grad(set_to_none=True)
    with precision():
      z_image, z_text, scale = run(pixels(), tokens)[:3]
      loss = loss_of(z_image, z_text, scale)
    loss.backward()
    optimizer.step()
    with torch.no_grad():
      model.logit_scale.clamp_(0, 4.6052)

  def encode():
    with torch.inference_mode(), precision():
      z = model.encode_image(pixels()) if kind == "image" else model.encode_text(tokens)
      torch.nn.functional.normalize(z.float(), dim=-1).numpy()

  if kind != "train":
    model.eval()
  version = f"open_clip {open_clip.__version__}, torch {torch.__version__}"
  return train if kind == "train" else encode, version


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
