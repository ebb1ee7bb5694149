"""The training step beside a plain PyTorch one of the same model, in turns on the same machine.

  python tests/peers/torch_step.py B/32 32 [--microbatches=4] [--rounds=3]

The arguments are SIZE/PATCH and the batch. Needs a PyTorch, which this project does not: run it
with a Python that has both, or set TORCH_PYTHON to one that has PyTorch. Prints images per
CPU-second of both in each round, and the ratio of the medians. In float32, on the CPU.
"""

import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

SIZES = {"Ti": (192, 12, 3), "S": (384, 12, 6), "B": (768, 12, 12), "L": (1024, 24, 16)}
IMAGE, LENGTH, VOCABULARY, EMBED = 224, 16, 32_000, 512
SECONDS = 20.0
ROOT = Path(__file__).parents[2]


def main(arguments):
  options = dict(a.removeprefix("--").split("=") for a in arguments if a.startswith("--"))
  tower, batch = [a for a in arguments if not a.startswith("--")]
  pieces, rounds = int(options.get("microbatches", 1)), int(options.get("rounds", 3))
  if "only" in options:
    print(json.dumps(torch_rate(tower, int(batch), pieces)))
    return
  python = os.environ.get("TORCH_PYTHON", sys.executable)
  rates = {"torch": [], "clip_jax": []}
  for _ in range(rounds):
    rates["torch"].append(json.loads(subprocess.run(
        [python, __file__, tower, batch, f"--microbatches={pieces}", "--only=torch"],
        check=True, capture_output=True, text=True).stdout))
    with tempfile.NamedTemporaryFile() as file:
      subprocess.run(
          [sys.executable, "-m", "clip_jax.bench", "step", f"--json={file.name}",
           f"--config=configs/benchmark.py:{tower}", f"--config.data.batch_size={batch}",
           f"--config.train.microbatches={pieces}", "--config.model.image.dtype=float32",
           "--config.model.text.dtype=float32", "--config.mesh.data=-1", "--config.mesh.fsdp=1"],
          check=True, capture_output=True, cwd=ROOT)
      rates["clip_jax"].append(json.load(file)["images per CPU-second"])
    print({name: f"{values[-1]:.2f}" for name, values in rates.items()}, flush=True)
  ours, theirs = (statistics.median(rates[name]) for name in ("clip_jax", "torch"))
  print(f"ViT-{tower}, batch {batch}, {pieces} pieces, images per CPU-second: clip_jax {ours:.2f}, "
        f"torch {theirs:.2f}, ratio {ours / theirs:.2f}")


def torch_rate(tower, batch, pieces):
  """Images per CPU-second of a step written as one would write it in PyTorch."""
  import torch
  from torch import nn
  import torch.nn.functional as F
  size, patch = tower.split("/")
  width, depth, heads = SIZES[size]
  text_width, text_depth, text_heads = SIZES["B"]  # As in configs/benchmark.py.
  N = (IMAGE // int(patch))**2

  class Block(nn.Module):
    def __init__(self, width, heads):
      super().__init__()
      self.heads = heads
      self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
      self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
      self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"),
                               nn.Linear(4 * width, width))

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
      self.embedding = nn.Embedding(VOCABULARY, text_width)
      self.text_positions = nn.Parameter(torch.randn(LENGTH, text_width) * 0.01)
      self.text = nn.ModuleList(Block(text_width, text_heads) for _ in range(text_depth))
      self.project_image = nn.Linear(width, EMBED, bias=False)
      self.project_text = nn.Linear(text_width, EMBED, bias=False)
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
  optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-6,
                                weight_decay=0.2)
  image = torch.randint(0, 256, (batch, 3, IMAGE, IMAGE), dtype=torch.uint8)
  tokens = torch.randint(1, 100, (batch, LENGTH))

  def loss_of(z_image, z_text):
    logits = model.log_scale.exp() * z_image @ z_text.T
    target = torch.arange(batch)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

  def embed(rows):
    return (model.encode_image(image[rows].float() / 127.5 - 1), model.encode_text(tokens[rows]))

  def step():
    optimizer.zero_grad(set_to_none=True)
    if pieces == 1:
      loss_of(*embed(slice(None))).backward()
    else:  # GradCache: embed without gradient, then each piece again with the loss's gradient.
      parts = [slice(i * batch // pieces, (i + 1) * batch // pieces) for i in range(pieces)]
      with torch.no_grad():
        z = [torch.cat(x) for x in zip(*(embed(rows) for rows in parts))]
      z = [x.requires_grad_() for x in z]
      loss_of(*z).backward()
      for rows in parts:
        torch.autograd.backward(embed(rows), [x.grad[rows] for x in z])
    optimizer.step()

  for _ in range(2):
    step()
  steps, begun, cpu = 0, time.perf_counter(), time.process_time()
  while time.perf_counter() - begun < SECONDS:
    step()
    steps += 1
  return steps * batch / (time.process_time() - cpu)


if __name__ == "__main__":
  main(sys.argv[1:])
