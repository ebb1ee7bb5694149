"""Compares the speed of the training step with a plain PyTorch step of the same model.

  python tests/peers/torch_step.py B/32 32 [--microbatches=4] [--rounds=5] [--cores=1] [--json=F]
                                           [--dtype=bfloat16] [--against=float32]

The arguments are SIZE/PATCH and the batch size. The script needs PyTorch, which is not a dependency
of this project: run it in an environment with both, or set TORCH_PYTHON to a Python with PyTorch.
The two processes take turns on the same cores, so that other load on the machine affects both. Each
round prints the images per CPU-second of both, and the last line the median ratio over the rounds.

Both run on the CPU, in float32 by default, with AdamW (fused in PyTorch) and the same
hyperparameters. The default is one core each, because PyTorch's threads wait for each other by
spinning: on a busy machine that adds CPU time which says nothing about PyTorch. --dtype=bfloat16
means autocast in PyTorch and the towers' dtype in clip_jax. --against=DTYPE compares clip_jax with
itself in another dtype and does not need PyTorch.
"""

import argparse
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import time

SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
IMAGE_SIZE, CONTEXT_LENGTH, VOCAB_SIZE, EMBED_DIM = 224, 16, 32_000, 512
OPTIMIZER = dict(learning_rate=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.2)
CPU_SECONDS = 6.0  # Minimum length of a turn.
ROOT = Path(__file__).parents[2]


def parse_arguments(arguments):
  """Returns the options by name, as strings, without those that are neither given nor defaulted."""
  parser = argparse.ArgumentParser(
    description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("tower")
  parser.add_argument("batch")
  for name, default in (
    ("microbatches", "1"),
    ("rounds", "5"),
    ("cores", "1"),
    ("dtype", "float32"),
    ("against", None),
    ("json", None),
  ):
    parser.add_argument(f"--{name}", default=default)
  parser.add_argument("--serve", help=argparse.SUPPRESS)
  return {name: x for name, x in vars(parser.parse_args(arguments)).items() if x is not None}


def main(arguments):
  options = parse_arguments(arguments)
  tower, batch = options.pop("tower"), options.pop("batch")
  if "serve" in options:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(options["cores"])])
    make = {"torch": torch_step, "clip_jax": clip_jax_step}[options["serve"]]
    serve(*make(tower, int(batch), int(options["microbatches"]), options["dtype"]), int(batch))
    return
  ours = f"clip_jax {options['dtype']}"
  theirs = "clip_jax " + options["against"] if "against" in options else f"torch {options['dtype']}"
  peers = {name: start_process(name, tower, batch, options) for name in (ours, theirs)}
  versions = {name: json.loads(peer.stdout.readline()) for name, peer in peers.items()}
  print(", ".join(versions.values()), flush=True)
  rates = {name: [] for name in peers}
  for _ in range(int(options["rounds"])):
    for name, peer in peers.items():
      print("turn", file=peer.stdin, flush=True)
      rates[name].append(json.loads(peer.stdout.readline()))
    print({name: round(values[-1], 2) for name, values in rates.items()}, flush=True)
  for peer in peers.values():
    peer.stdin.close()
    peer.wait()
  ratios = sorted(a / b for a, b in zip(rates[ours], rates[theirs]))
  medians = {name: statistics.median(values) for name, values in rates.items()}
  print(
    f"ViT-{tower}, batch {batch} in {options['microbatches']} microbatches, "
    f"{options['cores']} cores: {ours} trains {statistics.median(ratios):.2f} times as many "
    f"images per CPU-second as {theirs} "
    f"(rounds: {ratios[0]:.2f} to {ratios[-1]:.2f}); "
    + ", ".join(f"{name} {value:.2f}" for name, value in medians.items())
  )
  if "json" in options:
    Path(options["json"]).write_text(
      json.dumps(
        {
          "tower": tower,
          "batch": int(batch),
          **options,
          "versions": versions,
          "ratio": statistics.median(ratios),
          "images per CPU-second": rates,
        },
        indent=1,
      )
      + "\n"
    )


def start_process(name, tower, batch, options):
  """Starts a process that runs training steps for each line on its standard input."""
  kind, dtype = name.split()
  python = os.environ.get("TORCH_PYTHON", sys.executable) if kind == "torch" else sys.executable
  return subprocess.Popen(
    [
      python,
      __file__,
      tower,
      batch,
      f"--microbatches={options['microbatches']}",
      f"--dtype={dtype}",
      f"--cores={options['cores']}",
      f"--serve={kind}",
    ],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    cwd=ROOT,
    env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
  )


def serve(step, version, batch):
  """Prints the version, then for each line of input the images per CPU-second of a few steps."""
  for _ in range(2):
    step()
  print(json.dumps(version), flush=True)
  for _ in sys.stdin:
    step()  # Untimed: the allocator reclaims memory that the other process used during its turn.
    steps, cpu = 0, time.process_time()
    while time.process_time() - cpu < CPU_SECONDS:
      step()
      steps += 1
    print(json.dumps(steps * batch / (time.process_time() - cpu)), flush=True)


def clip_jax_step(tower, batch, microbatches, dtype):
  """Returns a step of configs/benchmark.py with the optimizer that both libraries have."""
  import jax

  from clip_jax.benches.bench_step import random_batch
  from clip_jax.config import call
  from clip_jax.training.optim import adamw
  from clip_jax.training.schedules import warmup_constant
  from clip_jax.training.setup import build_setup, compile_train_step, initial_state
  from configs.benchmark import get_config

  config = get_config(tower)
  config.data.batch_size, config.train.microbatches = batch, microbatches
  config.model.image.dtype = config.model.text.dtype = dtype
  with config.unlocked():
    config.optimizer = call(adamw, schedule=call(warmup_constant, warmup=1), **OPTIMIZER)
  setup = build_setup(config)
  with jax.set_mesh(setup.mesh):
    images, train_step = random_batch(setup), compile_train_step(setup)
    state = initial_state(setup)

  def step():
    nonlocal state
    with jax.set_mesh(setup.mesh):
      state = jax.block_until_ready(train_step(state, images)[0])

  return step, f"jax {jax.__version__}"


def torch_step(tower, batch, microbatches, dtype):
  """Returns a training step in idiomatic PyTorch."""
  import torch
  from torch import nn
  import torch.nn.functional as F

  size, patch = tower.split("/")
  width, depth, heads = SIZES[size]
  text_width, text_depth, text_heads = SIZES["B"]  # The text tower of configs/benchmark.py.
  N = (IMAGE_SIZE // int(patch)) ** 2

  class Block(nn.Module):
    def __init__(self, width, heads):
      super().__init__()
      self.heads = heads
      self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
      self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
      self.mlp = nn.Sequential(
        nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width)
      )

    def forward(self, x, mask=None):
      B, L, D = x.shape
      q, k, v = self.qkv(self.norm1(x)).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
      y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
      x = x + self.out(y.transpose(1, 2).reshape(B, L, D))
      return x + self.mlp(self.norm2(x))

  class Clip(nn.Module):
    def __init__(self):
      super().__init__()
      self.patches = nn.Conv2d(3, width, int(patch), int(patch))
      self.positions = nn.Parameter(torch.randn(N, width) * 0.02)
      self.image = nn.ModuleList(Block(width, heads) for _ in range(depth))
      self.image_norm, self.text_norm = nn.LayerNorm(width), nn.LayerNorm(text_width)
      self.embedding = nn.Embedding(VOCAB_SIZE, text_width)
      self.text_positions = nn.Parameter(torch.randn(CONTEXT_LENGTH, text_width) * 0.01)
      self.text = nn.ModuleList(Block(text_width, text_heads) for _ in range(text_depth))
      self.project_image = nn.Linear(width, EMBED_DIM, bias=False)
      self.project_text = nn.Linear(text_width, EMBED_DIM, bias=False)
      self.log_scale = nn.Parameter(torch.tensor(2.659))

    def encode_image(self, image):
      x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
      for block in self.image:
        x = block(x)
      return F.normalize(self.project_image(self.image_norm(x).mean(1)), dim=-1)

    def encode_text(self, tokens):
      mask = (tokens != 0)[:, None, None, :]
      x = self.embedding(tokens) + self.text_positions
      for block in self.text:
        x = block(x, mask)
      return F.normalize(self.project_text(self.text_norm(x[:, -1])), dim=-1)

  torch.manual_seed(0)
  model = Clip()
  optimizer = torch.optim.AdamW(
    model.parameters(),
    lr=OPTIMIZER["learning_rate"],
    betas=(OPTIMIZER["b1"], OPTIMIZER["b2"]),
    eps=OPTIMIZER["eps"],
    weight_decay=OPTIMIZER["weight_decay"],
    fused=True,
  )
  image = torch.randint(0, 256, (batch, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
  tokens = torch.randint(1, 100, (batch, CONTEXT_LENGTH))

  def loss_of(z_image, z_text):
    logits = model.log_scale.exp() * z_image @ z_text.T
    target = torch.arange(batch)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

  def embed(rows):
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bfloat16"):
      z = (model.encode_image(image[rows].float() / 127.5 - 1), model.encode_text(tokens[rows]))
    return tuple(x.float() for x in z)

  def step():
    optimizer.zero_grad(set_to_none=True)
    if microbatches == 1:
      loss_of(*embed(slice(None))).backward()
    else:  # GradCache: embed without gradients, then recompute each microbatch with the gradient.
      parts = [
        slice(i * batch // microbatches, (i + 1) * batch // microbatches)
        for i in range(microbatches)
      ]
      with torch.no_grad():
        z = [torch.cat(x) for x in zip(*(embed(rows) for rows in parts))]
      z = [x.requires_grad_() for x in z]
      loss_of(*z).backward()
      for rows in parts:
        torch.autograd.backward(embed(rows), [x.grad[rows] for x in z])
    optimizer.step()

  return step, f"torch {torch.__version__}"


if __name__ == "__main__":
  main(sys.argv[1:])
