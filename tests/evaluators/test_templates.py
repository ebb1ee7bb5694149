"""Prompt templates and the canonical form of names."""

import pytest

from clip_jax.errors import UserError
from clip_jax.evaluators.templates import SETS, canonical, per_dataset, templates


@pytest.mark.parametrize("name, count", [("none", 1), ("openai_7", 7), ("openai_80", 80)])
def test_the_sets_have_as_many_different_templates_as_published(name, count):
  assert len(set(templates(name))) == len(templates(name)) == count
  assert all(template.count("{}") == 1 for template in templates(name))


def test_the_seven_are_among_the_eighty():
  assert set(SETS["openai_7"]) < set(SETS["openai_80"])


def test_the_eighty_are_pairs_of_articles_as_published():
  # All but these come with "a" and with "the".
  alone = {"a photo of many {}.", "a photo of my {}.", "itap of my {}.", "a photo of one {}."}
  eighty = set(SETS["openai_80"])
  assert alone < eighty
  for template in eighty - alone:
    before, after = template.split("{}")
    words = before.split()
    place = max(i for i, word in enumerate(words) if word in ("a", "the"))
    words[place] = {"a": "the", "the": "a"}[words[place]]
    assert " ".join(words) + " {}" + after in eighty, template


@pytest.mark.parametrize("name, count, first", [
    ("food101", 1, "a photo of {}, a type of food."), ("cifar10", 18, "a photo of a {}."),
    ("gtsrb", 3, 'a zoomed in photo of a "{}" traffic sign.'),
    ("ucf101", 48, "a photo of a person {}.")])
def test_data_sets_have_the_templates_published_for_them(name, count, first):
  assert len(templates(name)) == count and templates(name)[0] == first


def test_every_data_sets_templates_have_one_place_for_the_name():
  assert len(per_dataset()) == 26
  assert all(template.count("{}") == 1 for own in per_dataset().values() for template in own)


def test_none_is_the_name_alone():
  assert templates("none") == ("{}",)


def test_own_templates_are_taken_as_they_are():
  assert templates(("a {}!", "{}, the")) == ("a {}!", "{}, the")
  assert templates("a drawing of {}") == ("a drawing of {}",)


def test_a_file_holds_one_template_a_line(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text("# Mine.\na photo of {}.\n\n  the {}  \n")
  assert templates(str(path)) == ("a photo of {}.", "the {}")


def test_a_template_without_a_place_for_the_name_says_so(tmp_path):
  with pytest.raises(UserError, match="'a photo' has no {} where the class name goes"):
    templates(("a {}", "a photo"))


def test_an_unknown_set_says_which_there_are():
  with pytest.raises(UserError, match="none, openai_7, openai_80.*Did you mean 'openai_80'"):
    templates("openai80")
  with pytest.raises(UserError, match="can be read .*Name a set, a file with one template a line"):
    templates("nowhere.txt")


def test_no_templates_say_so(tmp_path):
  (tmp_path / "empty.txt").write_text("# nothing\n")
  with pytest.raises(UserError, match="There are no templates in .*empty.txt"):
    templates(str(tmp_path / "empty.txt"))
  with pytest.raises(UserError, match=r"There are no templates in \(\)"):
    templates(())


@pytest.mark.parametrize("text, expected", [
    ("Persian_cat", "persian cat"), ("St. Bernard", "st bernard"),
    ("  jack-o'-lantern ", "jackolantern"), ("tench, Tinca tinca", "tench tinca tinca"),
    ("a photo of a {}.", "a photo of a {}"), ("{}!  In {Braces}", "{} in braces"),
    ("Über_Äpfel", "über äpfel"), ("a\t\n b", "a b")])
def test_the_canonical_form_is_that_of_big_vision(text, expected):
  assert canonical(text) == expected
  assert canonical(expected) == expected
