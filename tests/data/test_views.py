"""Views convert records to examples, with random numbers independent of the other views."""

import numpy as np
import pytest

from clip_jax.data import Examples, decode as decode_lib
from clip_jax.data.augment.horizontal_flip import HorizontalFlip
from clip_jax.data.crops import RandomResizedCrop, Resize
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.tokenizer import ClipBpe, SentencePiece
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError

TOKENIZER = SentencePiece()
SMALL_VIEW = ImageView(Resize(8))
CROP = ImageView(RandomResizedCrop(32), [HorizontalFlip()])
RECORD = {**OpenClipart("val")[5], "text": ["a red cat", "a blue dog", "a tree"]}


def rng(seed=0):
  return np.random.default_rng(seed)


def text_of(example):
  return TOKENIZER._processor.decode([int(t) for t in example["tokens"]])


def test_examples_have_the_entries_named_by_outputs():
  views = Views({"image": CROP, "view_a": CROP}, TOKENIZER)
  example = views(RECORD, rng())
  assert tuple(example) == views.outputs == ("image", "view_a", "tokens")
  assert example["image"].shape == (32, 32, 3) and example["image"].dtype == np.uint8
  assert example["tokens"].shape == (16,) and example["tokens"].dtype == np.int32


def test_adding_views_does_not_change_the_others():
  one = Views({"image": CROP}, TOKENIZER)
  three = Views({"view_b": CROP, "image": CROP, "view_a": CROP}, TOKENIZER)
  for seed in range(5):
    a, b = one(RECORD, rng(seed)), three(RECORD, rng(seed))
    np.testing.assert_array_equal(a["image"], b["image"])
    np.testing.assert_array_equal(a["tokens"], b["tokens"])
    assert (b["view_a"] != b["view_b"]).any() and (b["image"] != b["view_a"]).any()


def test_augmentations_run_in_order_after_the_crop():
  seen = []

  def note(name):
    return lambda image, rng: (seen.append((name, image.shape)), image + 1)[1]

  got = ImageView(Resize(8), (note("first"), note("second")))(np.zeros((4, 4, 3), np.uint8), rng())
  assert seen == [("first", (8, 8, 3)), ("second", (8, 8, 3))] and (got == 2).all()


def test_a_record_is_decoded_once(monkeypatch):
  count = []
  plain = decode_lib.Picture._decoded
  monkeypatch.setattr(
    decode_lib.Picture, "_decoded", lambda *args: (count.append(1), plain(*args))[1]
  )
  Views({"image": CROP, "view_a": CROP, "view_b": CROP}, TOKENIZER)(RECORD, rng())
  assert len(count) == 1


def test_captions_are_drawn_with_the_requested_weights():
  def shares(captions):
    views = Views({"image": ImageView(Resize(1))}, TOKENIZER, captions)
    record = {**RECORD, "image": np.zeros((1, 1, 3), np.uint8)}
    drawn = [text_of(views(record, rng(seed))) for seed in range(600)]
    return [drawn.count(text) / 600 for text in RECORD["text"]]

  np.testing.assert_allclose(shares("random"), [1 / 3] * 3, atol=0.07)
  np.testing.assert_allclose(shares("first"), [1, 0, 0])
  np.testing.assert_allclose(shares((1, 0, 3)), [0.25, 0, 0.75], atol=0.07)


def test_the_caption_is_a_function_of_seed_and_position():
  """A position stands for one visit to one record: an epoch and an index."""

  class Captions:
    def __len__(self):
      return 5

    def __getitem__(self, i):
      return {"image": np.zeros((1, 1, 3), np.uint8), "text": [f"{i} {k}" for k in "abcd"]}

  def captions_of(seed=0, **views):
    views = Views({"image": ImageView(Resize(1))}, lambda texts: np.array([texts]), **views)
    examples = Examples(Captions(), views, seed=seed)
    return [str(examples[position]["tokens"][0]) for position in range(5 * 40)]

  drawn = captions_of()
  assert drawn == captions_of() != captions_of(seed=1)
  epochs = [drawn[k : k + 5] for k in range(0, 200, 5)]
  assert all(sorted(text[0] for text in epoch) == list("01234") for epoch in epochs)
  for i in "01234":  # Over the epochs, all captions of a record are drawn about equally often.
    ways = [text[2] for text in drawn if text[0] == i]
    assert len(ways) == 40 and min(ways.count(k) for k in "abcd") >= 3
  assert {text[2] for text in captions_of(captions="first")} == {"a"}
  weighted = [text[2] for text in captions_of(captions=(0, 3, 1, 0))]
  assert 0.65 < weighted.count("b") / 200 < 0.85 and set(weighted) == {"b", "c"}


def test_a_single_text_is_used_with_any_policy():
  for captions in ("random", "first", (0.5, 0.5)):
    views = Views({"image": CROP}, TOKENIZER, captions)
    assert text_of(views({**RECORD, "text": "one dog"}, rng())) == "one dog"
  assert text_of(Views({"image": CROP}, TOKENIZER)({**RECORD, "text": []}, rng())) == ""


LONG = "one red cat and two blue dogs sit under a green tree by the old house near the sea"


@pytest.mark.parametrize(
  "make",
  [
    lambda length: SentencePiece(context_length=length),
    lambda length: SentencePiece(context_length=length, bos=True, sticky_eos=True),
    lambda length: SentencePiece(context_length=length, eos=False),
    lambda length: ClipBpe(context_length=length),
  ],
)
@pytest.mark.parametrize("way", ["first", "random", "block"])
def test_long_texts_are_shortened_as_configured_and_deterministically(make, way):
  whole, short = make(60)([LONG])[0], make(9)
  starts = int(getattr(short, "bos", True))
  ends = int(getattr(short, "eos", True))
  pad = whole[-1]
  full = [int(t) for t in whole[: 1 + max(i for i, t in enumerate(whole) if t != pad)]]
  if pad and ends:  # The end token is also the padding, so it was stripped too.
    full.append(int(pad))
  content, room = full[starts : len(full) - ends], 9 - starts - ends
  assert len(content) > 2 * room
  views = Views({"image": ImageView(Resize(1))}, short, shorten=way)
  record = {"image": np.zeros((1, 1, 3), np.uint8), "text": LONG}
  seen = set()
  for seed in range(60):
    tokens = [int(t) for t in views(record, rng(seed))["tokens"]]
    np.testing.assert_array_equal(tokens, views(record, rng(seed))["tokens"])
    assert tokens[:starts] == full[:starts] and tokens[9 - ends :] == full[len(full) - ends :]
    kept = tokens[starts : 9 - ends]
    if way == "random":
      rest = iter(content)
      assert all(token in rest for token in kept)  # In order, with gaps.
    else:
      assert any(kept == content[i : i + room] for i in range(len(content) - room + 1))
    seen.add(tuple(kept))
  assert len(seen) == 1 if way == "first" else len(seen) > len(content) - room - 2
  if way == "first":
    assert seen == {tuple(content[:room])}
  if way == "block":
    assert {tuple(content[:room]), tuple(content[-room:])} <= seen


def test_shorten_changes_neither_short_texts_nor_images():
  views = [
    Views({"image": CROP}, TOKENIZER, captions="first", shorten=way)
    for way in ("first", "random", "block")
  ]
  examples = [v(RECORD, rng(3)) for v in views]
  for example in examples[1:]:
    np.testing.assert_array_equal(example["tokens"], examples[0]["tokens"])
    np.testing.assert_array_equal(example["image"], examples[0]["image"])


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: Views({}, TOKENIZER), "No image view; give at least"),
    (lambda: Views({"index": CROP}, TOKENIZER), "Image view name index is reserved"),
    (
      lambda: Views({"image": CROP}, TOKENIZER, "last"),
      "captions is 'last'; Views expects 'random' or 'first'",
    ),
    (lambda: Views({"image": CROP}, TOKENIZER, (0, 0)), r"captions=\(0, 0\) have no positive one"),
    (lambda: Views({"image": CROP}, TOKENIZER, ()), r"captions=\(\) have no positive one"),
    (
      lambda: Views({"image": CROP}, TOKENIZER, shorten="syntax"),
      "shorten is 'syntax'; Views expects 'first', 'random' or 'block'",
    ),
    (
      lambda: Views({"image": CROP}, TOKENIZER, (1, 2))(RECORD, rng()),
      "2 weights, but a record has 3 texts",
    ),
    (
      lambda: Views({"image": CROP}, TOKENIZER)({"jpg": b"", "txt": ""}, rng()),
      "no 'image' and no 'text'; it has 'jpg', 'txt'",
    ),
  ],
)
def test_invalid_arguments_raise(make, message):
  with pytest.raises(UserError, match=message):
    make()


def texts_of(example):
  return [TOKENIZER._processor.decode([int(t) for t in row]) for row in example["tokens"]]


def test_several_captions_are_drawn_without_replacement_and_by_weight():
  views = Views({"image": SMALL_VIEW}, TOKENIZER, captions=(0.7, 0.3, 0.0), captions_per_image=2)
  drawn = [texts_of(views(RECORD, rng(seed))) for seed in range(200)]
  assert {tuple(texts) for texts in drawn} == {
    ("a red cat", "a blue dog"),
    ("a blue dog", "a red cat"),
  }
  first = np.mean([texts[0] == "a red cat" for texts in drawn])
  assert abs(first - 0.7) < 4 * np.sqrt(0.7 * 0.3 / 200)
  both = Views({"image": SMALL_VIEW}, TOKENIZER, captions_per_image=2)
  pairs = {tuple(texts_of(both(RECORD, rng(seed)))) for seed in range(60)}
  assert len(pairs) == 6 and all(a != b for a, b in pairs)


def test_a_record_with_fewer_captions_repeats_them():
  views = Views({"image": SMALL_VIEW}, TOKENIZER, captions="first", captions_per_image=4)
  assert views(RECORD, rng())["tokens"].shape == (4, TOKENIZER.context_length)
  assert texts_of(views(RECORD, rng())) == [*RECORD["text"], "a red cat"]
  assert texts_of(views({**RECORD, "text": "a tree"}, rng())) == ["a tree"] * 4
  with pytest.raises(UserError, match="2 weights, but a record has 3 texts"):
    Views({"image": SMALL_VIEW}, TOKENIZER, captions=(1, 1), captions_per_image=2)(RECORD, rng())


def test_a_field_of_the_records_becomes_the_group():
  views = Views({"image": SMALL_VIEW}, TOKENIZER, group="article")
  assert views.outputs == ("image", "tokens", "group")
  group = lambda value, seed=0: tuple(views({**RECORD, "article": value}, rng(seed))["group"])
  assert group("A", 0) == group("A", 1) != group("B") and group(1) == group(1) != group("1")
  assert group(None, 0) != group(None, 1)  # Groups of their own.
  example = views({**RECORD, "article": "A"}, rng())
  assert example["group"].dtype == np.uint32 and example["group"].shape == (2,)
  plain = Views({"image": SMALL_VIEW}, TOKENIZER)(RECORD, rng())
  np.testing.assert_array_equal(plain["tokens"], example["tokens"])
  with pytest.raises(UserError, match="no field 'article'"):
    views(RECORD, rng())
