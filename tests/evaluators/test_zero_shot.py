"""Zero-shot classification, compared with results computed by hand and with plain loops."""

import math

import numpy as np
import pytest

from clip_jax.config import build, call, from_json, to_json
from clip_jax.errors import UserError
from clip_jax.evaluators.classes import in_imagenet, published
from clip_jax.evaluators.embedding_cache import EmbeddingCache
from clip_jax.evaluators.results import Context
from clip_jax.evaluators.zero_shot import ZeroShot, class_embeddings
from measuring import measure


class Table:
  """An embedder that returns images, which are vectors, unchanged, and looks up texts."""

  def __init__(self, z_text):
    self.z_text, self.asked = z_text, []

  def encode_image(self, images):
    return np.asarray(images, np.float32)

  def encode_text(self, texts):
    self.asked += texts
    return np.array([self.z_text[text] for text in texts], np.float32)


class Hashed(Table):
  """An embedder with a pseudorandom vector for every text."""

  def __init__(self, width=8):
    super().__init__({})
    self.width = width

  def encode_text(self, texts):
    self.asked += texts
    z = np.stack(
      [np.random.default_rng(list(text.encode())).normal(size=self.width) for text in texts]
    )
    return (z / np.linalg.norm(z, axis=1, keepdims=True)).astype(np.float32)


CAT, DOG = [1.0, 0.0], [0.0, 1.0]
TWO = {"cat": CAT, "dog": DOG}


def records(*pairs):
  return [{"image": image, "label": label} for image, label in pairs]


def test_the_nearest_class_is_chosen():
  metrics = measure(
    ZeroShot(
      records(([0.9, 0.1], 0), ([0.2, 0.8], 1), ([0.3, 0.7], 0), ([0, 1], 1)), ("cat", "dog")
    ),
    Table(TWO),
  )
  assert metrics["top1"] == 75
  assert metrics["examples"] == 4 and metrics["classes"] == 2 and metrics["chance"] == 50
  assert metrics["standard_error"] == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))
  assert "top5" not in metrics  # It would always be 100% with two classes.


def test_mean_per_class_weights_classes_equally():
  metrics = measure(ZeroShot(records(*[(CAT, 0)] * 9, (CAT, 1)), ("cat", "dog")), Table(TWO))
  assert metrics["top1"] == 90
  assert metrics["mean_per_class"] == 50


def by_loops(z_image, z_class, truth):
  """Computes top-1, top-5 and mean per-class accuracy from their definitions."""
  hits = {1: [], 5: []}
  for z, right in zip(z_image, truth):
    score = [sum(float(a) * float(b) for a, b in zip(z, w)) for w in z_class]
    rank = sum(s >= score[right] - 1e-6 for c, s in enumerate(score) if c != right)
    for k, hit in hits.items():
      hit.append(rank < k)
  per_class = [np.mean([h for h, t in zip(hits[1], truth) if t == c]) for c in sorted(set(truth))]
  return 100 * np.mean(hits[1]), 100 * np.mean(hits[5]), 100 * np.mean(per_class)


def test_accuracies_match_loops(monkeypatch):
  monkeypatch.setattr("clip_jax.evaluators.embedding_cache.CHUNK", 17)
  monkeypatch.setattr("clip_jax.evaluators.accuracy._ROWS", 9)
  monkeypatch.setattr("clip_jax.evaluators.zero_shot.CHUNK", 5)
  rng = np.random.default_rng(0)
  names, forms = tuple("abcdefgh"), ("{}", "a {}.", "the {} {}")
  truth = np.concatenate([np.arange(8), rng.integers(0, 8, 50)])
  embedder = Hashed()
  z_class = []
  for name in names:
    z = np.mean([embedder.encode_text([f.replace("{}", name)])[0] for f in forms], 0)
    z_class.append(z / np.linalg.norm(z))
  z_image = np.array([z_class[t] + rng.normal(size=8) * 0.6 for t in truth])
  metrics = measure(ZeroShot(records(*zip(z_image, truth)), names, templates=forms), embedder)
  top1, top5, mean = by_loops(z_image, z_class, truth)
  assert 20 < top1 < 90
  assert (metrics["top1"], metrics["top5"], metrics["mean_per_class"]) == pytest.approx(
    (top1, top5, mean)
  )


def test_a_class_embedding_is_the_normalised_mean_of_its_prompts():
  table = Table(
    {"a cat": [1, 0, 0], "the cat": [0, 1, 0], "a dog": [0, 0, 1], "the dog": [0, 0, 1]}
  )
  z = class_embeddings(EmbeddingCache(table), [["a cat", "the cat"], ["a dog", "the dog"]])
  np.testing.assert_allclose(z, [[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]], rtol=1e-6)


def test_prompts_that_cancel_out_give_a_zero_embedding():
  z = class_embeddings(EmbeddingCache(Table({"a": [1, 0], "b": [-1, 0]})), [["a", "b"]])
  assert z.tolist() == [[0, 0]]


def test_ties_count_as_errors():
  embedder = Table({f"{i}": [1, 0] for i in range(6)})
  metrics = measure(ZeroShot(records(*[([1, 0], i) for i in range(6)]), tuple("012345")), embedder)
  assert metrics["top1"] == metrics["top5"] == 0


def test_the_first_of_two_classes_with_the_same_name_is_chosen_as_by_argmax():
  embedder = Hashed()
  names = ("missile", "cat", "dog", "missile", "fox", "owl", "elk")
  z = embedder.encode_text(names)
  metrics = measure(ZeroShot(records(*zip(z, range(7))), names), embedder)
  assert metrics["top1"] == pytest.approx(600 / 7)  # All but the second missile.
  assert metrics["top5"] == 100  # The second missile ranks second.
  assert metrics["top1"] == 100 * np.mean((z @ z.T).argmax(1) == np.arange(7))


def test_a_diverged_model_has_zero_accuracy():
  for z_image, z_text in (([np.nan] * 2, TWO), (CAT, {"cat": [np.nan] * 2, "dog": DOG})):
    metrics = measure(ZeroShot(records((z_image, 0), (z_image, 1)), ("cat", "dog")), Table(z_text))
    assert metrics["top1"] == 0


def test_a_class_may_have_several_names():
  embedder = Table({"cat": [1, 0], "kitty": [0.6, 0.8], "dog": [-1, 0]})
  source = records((CAT, "c"), ([-1, 0], "d"))
  metrics = measure(ZeroShot(source, {"c": ("cat", "kitty"), "d": "dog"}), embedder)
  assert metrics["top1"] == 100
  assert embedder.asked == ["cat", "kitty", "dog"]


@pytest.mark.parametrize("label", [1, np.int64(1), np.array(1), "dog", b"dog", "1"])
def test_a_label_is_an_index_or_a_name(label):
  metrics = measure(ZeroShot(records((CAT, 0), (DOG, label)), ("cat", "dog")), Table(TWO))
  assert metrics["top1"] == 100


def test_text_labels_are_names_even_if_they_look_like_indices():
  digits = Table({"1": CAT, "0": DOG})
  assert measure(ZeroShot(records((CAT, "1"), (DOG, "0")), ("1", "0")), digits)["top1"] == 100
  assert measure(ZeroShot(records((CAT, 0), (DOG, 1)), ("1", "0")), digits)["top1"] == 100


def test_only_the_given_classes_are_candidates():
  source = [{"image": image, "wnid": label} for image, label in ((CAT, 281), (DOG, 207))]
  metrics = measure(ZeroShot(source, {281: "cat", 207: "dog"}, label="wnid"), Table(TWO))
  assert metrics["top1"] == 100 and metrics["classes"] == 2


def test_canonicalise_applies_to_names_and_templates():
  embedder = Hashed()
  measure(
    ZeroShot(
      records(([1] * 8, 0), ([1] * 8, 1)),
      ("Persian_cat", "St. Bernard"),
      templates=("A photo of a {}.", "{}"),
      canonicalise=True,
    ),
    embedder,
  )
  assert embedder.asked == [
    "a photo of a persian cat",
    "persian cat",
    "a photo of a st bernard",
    "st bernard",
  ]


def test_names_and_templates_are_unchanged_by_default():
  embedder = Hashed()
  measure(
    ZeroShot(
      records(([1] * 8, 0), ([1] * 8, 1)), ("Persian_cat", "{braces}"), templates="A photo of a {}."
    ),
    embedder,
  )
  assert embedder.asked == ["A photo of a Persian_cat.", "A photo of a {braces}."]


def test_a_published_set_of_templates_is_selected_by_name():
  embedder = Hashed()
  measure(
    ZeroShot(records(([1] * 8, 0), ([1] * 8, 1)), ("cat", "dog"), templates="openai_80"), embedder
  )
  assert len(embedder.asked) == 160


def test_a_limit_may_exclude_classes_from_the_mean():
  source = records(*[(CAT, 0)] * 5, *[(DOG, 1)] * 5, ([0.6, 0.8], 2))
  metrics = measure(
    ZeroShot(source, ("cat", "dog", "fox"), limit=2), Table({**TWO, "fox": [-1, 0]})
  )
  assert metrics["examples"] == 2
  assert metrics["mean_per_class"] == 100


def test_a_label_may_be_a_list_of_correct_classes_or_empty():
  images = {(1.0, 0.0): [0, 1], (0.0, 1.0): [0], (0.6, 0.8): [1, 2], (-1.0, 0.0): []}
  embedder = Table({**TWO, "fox": [0.0, -1.0]})
  result = ZeroShot(
    records(*((list(z), label) for z, label in images.items())), ("cat", "dog", "fox")
  ).evaluate(Context(embedder))
  # The predictions are cat, dog, dog: correct, wrong, correct. The last image has no label.
  assert result.metrics["top1"] == pytest.approx(200 / 3)
  assert result.metrics["examples"] == 3 and result.detail["left_out"] == 1
  assert result.metrics["mean_per_class"] == pytest.approx(100 * (1 / 2 + 1 + 1) / 3)
  assert result.metrics["chance"] == pytest.approx(100 * 5 / 9)


def test_records_of_other_classes_can_be_left_out():
  source = records((CAT, 281), (DOG, 207), (CAT, 7))
  classes = {281: "cat", 207: "dog"}
  assert measure(ZeroShot(source, classes, others="leave_out"), Table(TWO))["examples"] == 2
  with pytest.raises(UserError, match="label 7, .* others=.leave_out"):
    measure(ZeroShot(source, classes), Table(TWO))
  with pytest.raises(UserError, match="None of the 1 records .* the 2 classes 281, 207. .*label 9"):
    measure(ZeroShot(records((CAT, 9)), classes, others="leave_out"), Table(TWO))
  with pytest.raises(UserError, match="others is 'ignore'; .* 'error' or 'leave_out'"):
    ZeroShot(source, classes, others="ignore")


def test_a_source_may_name_its_classes_and_classes_may_be_keyed_by_these_names():
  source = Pairs()
  source.classes = ("dog", "unused", "cat")
  source[:] = records((CAT, 2), (DOG, 0))
  assert measure(ZeroShot(source, {"cat": "cat", "dog": "dog"}), Table(TWO))["top1"] == 100
  metrics = measure(ZeroShot(source, limit=9), Table({**TWO, "unused": [-1, 0]}))
  assert metrics["top1"] == 100 and metrics["classes"] == 3
  with pytest.raises(UserError, match="list does not name its classes. Set classes="):
    ZeroShot(records((CAT, 0)))


def test_the_detail_has_standard_errors_and_settings():
  result = ZeroShot(
    records(([0.9, 0.1], 0), ([0.2, 0.8], 1), ([0.3, 0.7], 0), ([0, 1], 1)),
    ("cat", "dog"),
    templates="a {}!",
    canonicalise=True,
  ).evaluate(Context(Table({f"a {name}": z for name, z in TWO.items()})))
  detail = result.detail
  assert detail["standard_error"]["top1"] == pytest.approx(100 * math.sqrt(0.75 * 0.25 / 4))
  # The accuracy is 50% on "cat" and 100% on "dog", so only "cat" contributes to the error.
  assert detail["standard_error"]["mean_per_class"] == pytest.approx(
    100 * math.sqrt(0.5 * 0.5 / 2) / 2
  )
  assert detail["sentences"] == ["a {}"] and detail["canonicalise"]
  assert detail["classes"] == ["cat", "dog"] and detail["records"] == detail["asked"] == 4
  assert detail["unreadable"] == 0 and detail["resize"] == "the embedder's own"


@pytest.mark.parametrize(
  "name, count, label, names",
  [
    ("imagenet", 1000, "0", ("tench",)),
    ("imagenet_a", 200, "6", ("stingray",)),
    ("imagenet_r", 200, "1", ("goldfish",)),
    ("objectnet", 113, "wok", ("wok",)),
  ],
)
def test_published_classes_are_selected_by_name(name, count, label, names):
  found = published(name)
  assert len(found) == count and found[label] == names
  assert set(in_imagenet(name)) == set(found)
  assert {k for keys in in_imagenet(name).values() for k in keys} <= set(published("imagenet"))


def test_objectnet_maps_to_125_imagenet_classes():
  rows = [row for rows in in_imagenet("objectnet").values() for row in rows]
  assert len(rows) == len(set(rows)) == 125
  names = published("imagenet")
  assert {names[row] for row in in_imagenet("objectnet")["bicycle"]} == {
    ("mountain bike",),
    ("tandem bicycle",),
  }


def test_the_error_for_unknown_published_classes_lists_the_sets():
  with pytest.raises(UserError, match="classes 'imagenet_v2'; .* imagenet, imagenet_a"):
    ZeroShot(records((CAT, 0)), "imagenet_v2")


def test_the_error_for_an_unknown_resize_lists_the_modes():
  with pytest.raises(
    UserError,
    match="resize is 'squish'; ZeroShot expects 'squash', 'crop', .*Did you mean 'squash'",
  ):
    ZeroShot(records((CAT, 0)), ("cat", "dog"), resize="squish")


class Pairs(list):
  """A source that a config can name."""

  def __init__(self):
    super().__init__(records((CAT, "c"), (DOG, "7")))


def test_an_evaluator_survives_a_json_round_trip():
  spec = call(ZeroShot, source=call(Pairs), classes={"c": ["cat"], "7": "dog"}, canonicalise=True)
  again = from_json(to_json(spec), trust=(__name__,))
  assert measure(build(again), Table(TWO)) == measure(build(spec), Table(TWO))


def test_an_empty_source_is_an_error():
  with pytest.raises(UserError, match="list has no records"):
    ZeroShot([], ("cat", "dog"))


def test_a_single_class_is_an_error():
  with pytest.raises(UserError, match="has 1 classes; expected at least two"):
    ZeroShot(records((CAT, 0)), ("cat",))


@pytest.mark.parametrize("names", [(), " ", ("cat", ""), (3,)])
def test_a_class_without_a_name_is_an_error(names):
  with pytest.raises(UserError, match="Class 'c' has the name .*; expected one or several"):
    ZeroShot(records((CAT, "c")), {"c": names, "d": "dog"})


def test_the_error_for_classes_without_images_names_them():
  source = records((CAT, 0))
  with pytest.raises(UserError, match="2 of 3 classes have no images.* 'dog', 'fox'"):
    measure(ZeroShot(source, ("cat", "dog", "fox")), Table({**TWO, "fox": CAT}))


def test_the_error_for_an_unknown_label_lists_the_classes():
  evaluator = ZeroShot(records((CAT, "cat"), (DOG, "dogs")), ("cat", "dog"))
  with pytest.raises(
    UserError, match="Record 1 has label 'dogs', .* the 2 classes: cat, dog. Did you mean 'dog'"
  ):
    measure(evaluator, Table(TWO))
  with pytest.raises(UserError, match="has label -1, .* the 2 classes: cat, dog"):
    measure(ZeroShot(records((CAT, -1)), ("cat", "dog")), Table(TWO))


def test_the_error_for_a_missing_label_lists_the_fields():
  with pytest.raises(UserError, match="has no 'class', only image, label"):
    measure(ZeroShot(records((CAT, 0)), ("cat", "dog"), label="class"), Table(TWO))
