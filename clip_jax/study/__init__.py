"""The study itself: budgets, grids, laws, figures, advice; python -m clip_jax.study."""
