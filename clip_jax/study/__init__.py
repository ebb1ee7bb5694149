"""The scaling study: budgets, grids of runs, scaling laws, figures and advice."""
