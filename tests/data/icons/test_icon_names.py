"""Words of style are taken off names where the set uses them as such, and only there."""

import pytest

from clip_jax.data.icons.icon_names import Naming

WORDS = [f"{a}{b}" for a in "bcdfg" for b in ("at", "og", "un", "ip")]


def naming(*names, suffixes=(), prefixes=()):
  return Naming((*WORDS, *names), suffixes, prefixes)


def test_a_style_that_many_names_end_in_is_taken_off():
  names = [f"{word}-outline" for word in WORDS]
  assert naming(*names).split("trash-can-outline") == ("trash can", ("outline",))


def test_a_word_of_style_that_few_names_end_in_belongs_to_the_name():
  assert naming("chart-line").split("chart-line") == ("chart line", ())
  assert naming("traffic-light").split("traffic-light") == ("traffic light", ())


def test_a_word_that_is_no_style_is_kept_however_many_names_end_in_it():
  names = [f"{word}-flag" for word in WORDS]
  assert naming(*names).split("red-flag") == ("red flag", ())


def test_listed_suffixes_and_prefixes_are_taken_off():
  found = naming(suffixes=("24-filled",), prefixes=("baseline",))
  assert found.split("zoom-out-24-filled") == ("zoom out", ("filled",))
  assert found.split("baseline-home") == ("home", ("filled",))


def test_nested_styles_and_sizes_are_taken_off():
  names = [f"{word}-{size}-bold-duotone" for word in WORDS for size in (16, 24)]
  assert naming(*names).split("home-24-bold-duotone") == ("home", ("bold", "two-tone"))


def test_numbers_of_variants_are_taken_off():
  names = [f"{word}-{i}" for word in WORDS for i in (1, 2)]
  assert naming(*names).split("folder-3") == ("folder", ())
  numbered = naming(*[f"{word}{i}" for word in WORDS for i in (1, 2)])
  assert numbered.split("cart-ruler4") == ("cart ruler", ())
  assert naming("mp3").split("mp3") == ("mp3", ())


@pytest.mark.parametrize("name", ["outline", "fill", "24"])
def test_a_name_never_becomes_empty(name):
  names = [f"{word}-{name}" for word in WORDS]
  assert naming(*names, name).split(name)[0] == name
