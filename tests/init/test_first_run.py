"""The README's three commands, from a folder of images and a CSV to a search, on a tiny folder."""

import csv
import json
from pathlib import Path
import re

import pytest

from clip_jax import evaluate, search, train
from clip_jax.cli.config_files import load_function
from clip_jax.config import build, call
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.errors import UserError
from clip_jax.evaluate import captioned
from clip_jax.inference.loading import describe
from clip_jax.init import __main__ as init
from clip_jax.objectives.siglip import Siglip
from markdown_pages import ROOT, commands

PAIRS = 40
# Smaller than the config's, because the test only checks that the commands fit together.
QUICK = (
  "--config.train.steps=2",
  "--config.train.log_every=1",
  "--config.model.embed_dim=16",
  "--config.model.projection_hidden_dim=32",
  "--config.model.text.width=16",
  "--config.model.image.towers[0].width=8",
)


@pytest.fixture
def photos(tmp_path, monkeypatch):
  """A folder with 40 drawings in a subfolder, and a table with two captions of the first one."""
  source = OpenClipart("val")
  (tmp_path / "photos/a").mkdir(parents=True)
  with open(tmp_path / "photos/captions.csv", "w", newline="", encoding="utf-8") as file:
    rows = csv.writer(file)
    rows.writerow(("file_name", "title", "author"))
    for i in range(PAIRS):
      (tmp_path / f"photos/a/{i}.webp").write_bytes(source[i]["image"])
      rows.writerow((f"a/{i}.webp", source[i]["text"], "somebody"))
    rows.writerow(("a/0.webp", "another caption", "somebody"))
  monkeypatch.chdir(tmp_path)
  return tmp_path


def of_readme():
  """Returns the arguments of the README's three commands by the name of the command.

  The weights, which are not here, and the server are left out.
  """
  found = [words for words in commands((ROOT / "README.md").read_text()) if "mine" in str(words)]
  by_name = {words[2].removeprefix("clip_jax."): words[3:] for words in found}
  assert list(by_name) == ["init", "train", "search"]
  weights, serve = by_name["init"].pop(), by_name["search"].pop()
  assert weights.startswith("--weights=hf-hub:") and serve == "--serve"
  return by_name


@pytest.mark.slow  # Trains, and compiles for three commands: 20 s of CPU time.
def test_the_three_commands_of_the_readme_lead_from_a_folder_to_a_search(photos, capsys):
  lines = of_readme()
  init.main(lines["init"])
  said = capsys.readouterr().out
  assert "the table captions.csv with images in the column file_name, captions in title" in said
  assert f"{PAIRS} pairs, 2 captions each at most" in said and "Split: train part, 32 of 40" in said
  # The last line is the README's next command.
  assert said.splitlines()[-1].split() == ["python", "-m", "clip_jax.train", *lines["train"]]

  config = load_function("mine/config.py", "get_config")()
  assert len(build(config.data.source)) == 32
  assert train.main([*lines["train"], *QUICK]) in (0, None)
  written = [json.loads(line) for line in Path("mine/run/metrics.jsonl").read_text().splitlines()]
  assert any("test/image_to_text_r10" in line for line in written)

  capsys.readouterr()
  assert search.main([*lines["search"], "a red car"]) == 0
  assert re.search(
    r"^0\.\d{4}  photos/a/\d+\.webp$|/photos/a/\d+\.webp$", capsys.readouterr().out, re.M
  )
  assert evaluate.main(["--model=mine/run", "--retrieval=mine/data", "--out=r.json"]) == 0
  result = json.loads(Path("r.json").read_text())["results"]["retrieval"]["metrics"]
  assert result["examples"] == PAIRS and result["captions"] == PAIRS + 1

  with pytest.raises(UserError, match="config.py exists, and you may have changed it"):
    init.main(lines["init"])


def test_images_with_caption_files(photos, capsys):
  for i in range(PAIRS):
    Path(f"photos/a/{i}.txt").write_text(f"drawing number {i}")
  init.main(["--from=photos/a", "--out=mine", "--max_side=48"])
  assert f"Found {PAIRS} images, {PAIRS} of them with a caption file." in capsys.readouterr().out
  source = build(load_function("mine/config.py", "get_config")().data.source)
  assert source[0]["text"].startswith("drawing number") and len(source) == 32


def test_prepared_records_and_weights(photos, capsys):
  init.main(["--from=photos", "--out=one"])
  table = Path("photos/captions.csv").read_text().replace("file_name,title", "image,caption")
  Path("photos/pairs.csv").write_text(table)
  weights = ROOT / "tests/golden/huggingface_siglip"
  init.main(["--from=one/data", "--out=two", f"--weights={weights}"])
  config = load_function("two/config.py", "get_config")()
  assert config.train.init_from == str(weights) and not Path("two/data").exists()
  assert len(captioned("one/data", {})) == PAIRS and len(captioned("photos/pairs.csv", {})) == PAIRS
  tokenizer, text = build(config.data.views.tokenizer), config.model.text
  assert tokenizer.context_length == text.context_length
  assert tokenizer.vocab_size <= text.vocab_size
  assert config.data.views.images.image.crop.size == config.model.image.image_size
  start = describe(weights)
  assert config.data.views.preprocess == start.preprocess  # For evaluations and `load`, too.
  assert config.objective == call(Siglip) and config.train.init_logit


def test_mistakes_are_found_before_anything_is_written(photos):
  for arguments, message in (
    ([], "Which data"),
    (["--from=photos"], "Where should the config be written"),
    (["--from=nothing", "--out=mine"], "There is nothing at --from=nothing"),
    (["--from=photos", "--out=mine", "--weights=nothing"], "nothing"),
    (["--from=photos", "--out=mine", "--seed=x"], "--seed=x is not an integer"),
    (["--from=photos", "--out=mine", "--max_side=0"], "--max_side=0 is not an integer"),
  ):
    with pytest.raises(UserError, match=message):
      init.main(arguments)
  assert not Path("mine").exists()
