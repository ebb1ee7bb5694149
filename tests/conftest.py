"""Eight devices for every test, made of the CPU there is; set before JAX looks for any."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", 8)
