"""Configs of training runs, one screen each; importable as clip_jax.configs."""
