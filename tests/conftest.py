"""Eight devices for every test, made of the CPU there is; set before JAX looks for any."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)
# What is compiled here runs once or twice, so compiling takes the time: half of it this way.
jax.config.update("jax_disable_most_optimizations", True)
