"""Memory that the compiler reports for large batches; nothing is executed."""

import jax
import jax.numpy as jnp
import optax
import pytest

from clip_jax.config import call
from clip_jax.model.learner import split_state
from clip_jax.objectives.clip import Clip
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.training import state as state_lib, step as step_lib
from tiny import learner

GB = 1e9


def step_memory(B, microbatches, *, objective, size, patch, image_size, length=16):
  """Bytes of the arguments and temporaries of a train step on one device."""
  made = lambda: learner(
    objective,
    embed_dim=512,
    image=call(Vit, size=size, patch=patch, image_size=image_size, remat="full"),
    text=call(TextTransformer, size=size, context_length=length, remat="full"),
  )
  graphdef = split_state(jax.eval_shape(made))[0]
  optimizer = optax.adam(1e-3)
  state = jax.eval_shape(lambda: state_lib.init_train_state(made(), optimizer))
  batch = {
    "image": jax.ShapeDtypeStruct((B, image_size, image_size, 3), jnp.uint8),
    "tokens": jax.ShapeDtypeStruct((B, length), jnp.int32),
  }
  step = step_lib.make_train_step(graphdef, optimizer, seed=0, microbatches=microbatches)
  memory = jax.jit(step, donate_argnums=0).lower(state, batch).compile().memory_analysis()
  return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def test_microbatches_need_a_fraction_of_the_memory():
  sizes = dict(objective=call(Clip, chunk_size=64), size="mu", patch=8, image_size=64)
  plain, pieces = (step_memory(512, m, **sizes)[1] for m in (1, 16))
  assert pieces < plain / 4


@pytest.fixture
def optimized():
  """Enables the compiler optimisations, which are otherwise disabled in tests."""
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", False)
  yield
  jax.config.update("jax_disable_most_optimizations", before)


@pytest.mark.slow
def test_vit_b_16_with_batch_32768_fits_one_80_gb_device(optimized):
  """As compiled for CPU, which keeps some arrays in float32 that are bfloat16 elsewhere."""
  arguments, temporaries = step_memory(
    32_768, 64, objective=call(Clip, chunk_size=512), size="B", patch=16, image_size=224
  )
  print(f"arguments {arguments / GB:.1f} GB, temporaries {temporaries / GB:.1f} GB")
  assert arguments + temporaries < 80 * GB
