"""Gives every test eight CPU devices; set before JAX initialises its backend."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The same results on every processor; tests of bfloat16 ask for it.
os.environ["CLIP_JAX_CPU_DTYPE"] = "float32"

import jax

jax.config.update("jax_num_cpu_devices", 8)
# Tests run each compiled program once or twice, so compile time dominates: this halves it. One leg
# of CI tests the optimised programs that users get.
if os.environ.get("CLIP_JAX_TEST_OPTIMIZE", "0") == "0":
  jax.config.update("jax_disable_most_optimizations", True)
