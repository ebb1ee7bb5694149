"""NumPy reference implementations of layers; they take the parameters of clip_jax's layers."""

import math

import numpy as np


def block_params(tree, i):
  """Returns the parameters of block i from stacked parameters."""
  return {k: block_params(v, i) if isinstance(v, dict) else v[i] for k, v in tree.items()}


def linear(p, x):
  return x @ np.asarray(p["kernel"]) + np.asarray(p.get("bias", 0))


def layer_norm(p, x, norm_eps=1e-6):
  mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
  return (x - mean) / np.sqrt(variance + norm_eps) * np.asarray(p["scale"]) + np.asarray(p["bias"])


def gelu(x):
  return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x):
  return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def mlp(p, x, activation=gelu):
  return linear(p["down"], activation(linear(p["up"], x)))


def patches(x, size):
  """Splits [B, H, W, C] into patches, each flattened row by row, zero-padding bottom and right."""
  B, H, W, C = x.shape
  rows, columns = math.ceil(H / size), math.ceil(W / size)
  out = np.zeros((B, rows, columns, size, size, C), x.dtype)
  for i in range(H):
    for j in range(W):
      out[:, i // size, j // size, i % size, j % size] = x[:, i, j]
  return out.reshape(B, rows, columns, -1)
