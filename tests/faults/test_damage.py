"""A sample of random damage to each form of file; the slow tests repeat it 200 times."""

from random import Random

import pytest

from faults import damage
from faults.commands import Place
from faults.kinds import TITLES


@pytest.mark.parametrize("rounds", [12, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", damage.FORMS)
def test_random_damage_is_survived(form, rounds, tmp_path):
  place, attempt = Place(tmp_path), damage.attempt(form)
  noticed = sum(attempt(place, Random(f"{form} {round_}")) for round_ in range(rounds))
  # Some damage is to bytes that nothing reads.
  assert 0.05 * rounds < noticed <= rounds


def test_every_form_of_damage_is_a_kind_of_fault():
  assert {f"damage-{form}" for form in damage.FORMS} <= TITLES.keys()
