"""Steps, saves and evaluations leave no memory, threads or open files behind."""

from random import Random

import pytest

from faults.commands import Place
from faults.long_run import of_many_steps


@pytest.mark.parametrize("steps", [400, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_run_needs_no_more_at_its_end_than_early_on(steps, tmp_path):
  of_many_steps(Place(tmp_path), Random(0), steps)
