"""The models that come with the package load by name and do what their cards say."""

from PIL import Image, ImageDraw
import pytest

import clip_jax
from clip_jax.inference.loading import describe
from clip_jax.pretrained import packaged

LIMIT = 15 * 2**20  # Bytes of weights.


def drawn(draw):
  picture = Image.new("RGB", (64, 64), "white")
  draw(ImageDraw.Draw(picture))
  return picture


def strokes(*lines):
  return drawn(lambda pen: [pen.line(line, fill=0, width=5) for line in lines])


def icons():
  left = strokes([(54, 32), (10, 32)], [(10, 32), (26, 16)], [(10, 32), (26, 48)])
  return {
    "arrow left": left,
    "arrow right": left.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "plus": strokes([(32, 10), (32, 54)], [(10, 32), (54, 32)]),
    "close": strokes([(14, 14), (50, 50)], [(50, 14), (14, 50)]),
    "menu": strokes(*([(10, y), (54, y)] for y in (16, 32, 48))),
    "search": drawn(
      lambda pen: (
        pen.ellipse([10, 10, 40, 40], outline=0, width=5),
        pen.line([(37, 37), (54, 54)], fill=0, width=5),
      )
    ),
    "home": drawn(
      lambda pen: pen.polygon(
        [(32, 8), (56, 29), (49, 29), (49, 56), (15, 56), (15, 29), (8, 29)], fill=0
      )
    ),
  }


def test_icons_are_named(tmp_path, monkeypatch):
  (tmp_path / "icons").mkdir()  # A folder of data has the same name in the documentation.
  monkeypatch.chdir(tmp_path)
  model, known = clip_jax.load("icons"), icons()
  probabilities = model.classify(list(known.values()), list(known))
  assert [list(known)[k] for k in probabilities.argmax(1)] == list(known)
  assert probabilities.max(1).min() > 0.5


@pytest.mark.parametrize("name", packaged.shipped())
def test_a_model_is_small_and_has_a_card_and_attribution(name):
  folder = packaged.SHIPPED / name
  assert (folder / packaged.WEIGHTS).stat().st_size <= LIMIT
  card = (folder / "README.md").read_text()
  assert f'clip_jax.load("{name}")' in card and "## Licence" in card
  assert describe(name).model.embed_dim == describe(folder).model.embed_dim


def test_every_set_of_icons_is_attributed():
  header, *rows = (packaged.SHIPPED / "icons/attribution.tsv").read_text().splitlines()
  assert header.split("\t") == ["prefix", "name", "icons", "licence", "author", "url"]
  sets = [dict(zip(header.split("\t"), row.split("\t"))) for row in rows]
  assert len(sets) == 224 and sum(int(one["icons"]) for one in sets) == 354_172
  assert all(one["prefix"] and one["licence"] and one["author"] for one in sets)
