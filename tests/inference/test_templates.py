"""Prompt templates and the canonical form of class names."""

import pytest

from clip_jax.errors import UserError
from clip_jax.inference.templates import SETS, canonical, per_dataset, templates


@pytest.mark.parametrize("name, count", [("none", 1), ("openai_7", 7), ("openai_80", 80)])
def test_the_sets_have_the_published_number_of_distinct_templates(name, count):
  assert len(set(templates(name))) == len(templates(name)) == count
  assert all(template.count("{}") == 1 for template in templates(name))


def test_the_seven_are_among_the_eighty():
  assert set(SETS["openai_7"]) < set(SETS["openai_80"])


def test_most_of_the_eighty_come_with_both_articles_as_published():
  # All others come with "a" and with "the".
  alone = {"a photo of many {}.", "a photo of my {}.", "itap of my {}.", "a photo of one {}."}
  eighty = set(SETS["openai_80"])
  assert alone < eighty
  for template in eighty - alone:
    before, after = template.split("{}")
    words = before.split()
    place = max(i for i, word in enumerate(words) if word in ("a", "the"))
    words[place] = {"a": "the", "the": "a"}[words[place]]
    assert " ".join(words) + " {}" + after in eighty, template


@pytest.mark.parametrize(
  "name, count, first",
  [
    ("food101", 1, "a photo of {}, a type of food."),
    ("cifar10", 18, "a photo of a {}."),
    ("gtsrb", 3, 'a zoomed in photo of a "{}" traffic sign.'),
    ("ucf101", 48, "a photo of a person {}."),
  ],
)
def test_data_sets_have_their_published_templates(name, count, first):
  assert len(templates(name)) == count and templates(name)[0] == first


def test_every_template_of_a_data_set_has_one_placeholder():
  assert len(per_dataset()) == 26
  assert all(template.count("{}") == 1 for own in per_dataset().values() for template in own)


def test_none_uses_only_the_class_name():
  assert templates("none") == ("{}",)


def test_own_templates_are_used_unchanged():
  assert templates(("a {}!", "{}, the")) == ("a {}!", "{}, the")
  assert templates("a drawing of {}") == ("a drawing of {}",)


def test_a_file_has_one_template_per_line(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text("# Mine.\na photo of {}.\n\n  the {}  \n")
  assert templates(str(path)) == ("a photo of {}.", "the {}")


def test_a_template_without_a_placeholder_is_an_error(tmp_path):
  with pytest.raises(UserError, match="'a photo' has no {}"):
    templates(("a {}", "a photo"))


def test_the_error_for_an_unknown_set_lists_the_sets():
  with pytest.raises(UserError, match="none, openai_7, openai_80.*Did you mean 'openai_80'"):
    templates("openai80")
  with pytest.raises(UserError, match="'nowhere.txt' .* nor a readable text file"):
    templates("nowhere.txt")


def test_an_empty_list_or_file_of_templates_is_an_error(tmp_path):
  (tmp_path / "empty.txt").write_text("# nothing\n")
  with pytest.raises(UserError, match="There are no templates in .*empty.txt"):
    templates(str(tmp_path / "empty.txt"))
  with pytest.raises(UserError, match=r"There are no templates in \(\)"):
    templates(())


@pytest.mark.parametrize(
  "text, expected",
  [
    ("Persian_cat", "persian cat"),
    ("St. Bernard", "st bernard"),
    ("  jack-o'-lantern ", "jackolantern"),
    ("tench, Tinca tinca", "tench tinca tinca"),
    ("a photo of a {}.", "a photo of a {}"),
    ("{}!  In {Braces}", "{} in braces"),
    ("Über_Äpfel", "über äpfel"),
    ("a\t\n b", "a b"),
  ],
)
def test_the_canonical_form_matches_big_vision(text, expected):
  assert canonical(text) == expected
  assert canonical(expected) == expected
