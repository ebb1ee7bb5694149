"""Exporting models to the formats of other libraries."""

import json
import os
import subprocess
import sys
import types

import jax
from jax import export as jax_export
from ml_collections.config_dict import ConfigDict
import numpy as np
import pytest

import clip_jax
from clip_jax import export
from clip_jax.config import call
from clip_jax.data.records import ArrayRecord
from clip_jax.errors import UserError
from clip_jax.inference.loading import load_bundle
from clip_jax.model.learner import split_state
from clip_jax.model.two_towers import TwoTowers
from clip_jax.nn.target import target_platform
from clip_jax.objectives.clip import Clip
from clip_jax.pretrained import big_vision, hugging_face, model_card, open_clip, stablehlo
from clip_jax.pretrained.model_bundle import ModelBundle
from clip_jax.towers.clip_resnet import ClipResnet
from clip_jax.towers.resnet import BitResnet
from clip_jax.towers.text import TextTransformer
from clip_jax.towers.vit import Vit
from clip_jax.training import loop as loop_lib
from clip_jax.training.optim import adamw
from golden_checkpoints import GOLDENS
from run_config import get_config
from tiny import SIZE, batch, image_tower, learner, model_call, text_tower

TEXTS = ["a dog", "flag of France"]


@pytest.fixture(name="run", scope="module")
def trained(tmp_path_factory):
  """Trains a run of a few steps with towers in OpenAI's form."""
  config = get_config("2")
  config.evaluators = config.final_evaluators = {}
  config.model.image = call(
    Vit,
    size="mu",
    patch=8,
    image_size=32,
    pool="tok",
    class_position=True,
    pre_norm=True,
    patch_bias=False,
    norm_eps=1e-5,
    activation="gelu",
    dtype="float32",
  )
  config.model.text = call(
    TextTransformer,
    size="mu",
    vocab_size=4096,
    context_length=8,
    pool="eot",
    causal=True,
    activation="gelu",
    dtype="float32",
  )
  workdir = tmp_path_factory.mktemp("run")
  loop_lib.run(config, workdir)
  return workdir


def pictures():
  rng = np.random.default_rng(0)
  return [rng.integers(0, 256, size).astype(np.uint8) for size in ((40, 60, 3), (32, 32, 3))]


def written(run, form, out):
  assert export.main([f"--model={run}", f"--format={form}", f"--out={out}"]) == 0
  return out


@pytest.mark.parametrize("form", ["open_clip", "huggingface"])
def test_an_exported_run_gives_the_same_embeddings(run, form, tmp_path):
  there, here = clip_jax.load(run), clip_jax.load(written(run, form, tmp_path / "out"))
  np.testing.assert_allclose(here.encode_text(TEXTS), there.encode_text(TEXTS), atol=1e-6)
  np.testing.assert_allclose(
    here.encode_image(pictures()), there.encode_image(pictures()), atol=1e-6
  )
  assert here.scale == pytest.approx(there.scale) and here.bias == there.bias == 0


def test_a_run_is_exported_to_stablehlo(run, tmp_path):
  folder, there = written(run, "stablehlo", tmp_path), clip_jax.load(run)
  assert (folder / "spiece.model").is_file()
  shapes = json.loads((folder / "shapes.json").read_text())
  assert shapes["encode_image"] == {
    "input": {"shape": ["B", 32, 32, 3], "dtype": "uint8"},
    "output": {"shape": ["B", 32], "dtype": "float32"},
  }
  assert shapes["encode_text"]["input"] == {"shape": ["B", 8], "dtype": "int32"}
  assert shapes["scale"] == pytest.approx(there.scale) and shapes["bias"] == 0
  assert shapes["preprocess"]["size"] == [32, 32]
  assert shapes["preprocess"]["resize_mode"] == there.preprocess.resize_mode
  program = lambda name: jax_export.deserialize(
    bytearray((folder / f"{name}.stablehlo").read_bytes())
  )
  image, text = program("encode_image"), program("encode_text")
  assert set(image.platforms) == {"cpu", "cuda", "tpu"}
  pixels = np.stack([there.preprocess(x) for x in pictures()])
  np.testing.assert_allclose(image.call(pixels), there.encode_image(pixels), atol=1e-6)
  np.testing.assert_allclose(image.call(pixels[:1]), there.encode_image(pixels)[:1], atol=1e-6)
  np.testing.assert_allclose(text.call(there.tokenize(TEXTS)), there.encode_text(TEXTS), atol=1e-6)


def test_an_export_has_a_model_card_and_the_config(run, tmp_path):
  folder = tmp_path / "out"
  flags = ["--licence=cc-by-4.0", f"--out={folder}"]
  assert export.main([f"--model={run}", "--format=open_clip", *flags]) == 0
  card = (folder / "README.md").read_text()
  assert card.startswith("---\nlibrary_name: open_clip\n") and 'license: "cc-by-4.0"' in card
  assert "local-dir:out" in card and "None: the run has not evaluated its last step" in card
  config = json.loads((run / "config.json").read_text())
  steps, batch = config["train"]["steps"], config["data"]["batch_size"]
  assert f"{steps * batch} samples in {steps} steps; batch {batch}" in card
  kept = json.loads((folder / "training_config.json").read_text())
  assert kept["data"]["batch_size"] == batch and str(run) not in json.dumps(kept) + card
  assert "- weights: cc-by-4.0" in card


def test_a_readme_of_somebody_else_is_kept_and_a_card_is_replaced(tmp_path):
  saved = load_bundle(GOLDENS["huggingface_clip"][0])
  card, notes = tmp_path / "README.md", "# My notes\n"
  card.write_text(notes)
  origin = model_card.Origin("owl", None, 0, 0, {}, "0")
  assert model_card.write(saved, "onnx", tmp_path, origin) == card
  assert card.read_text() == notes
  card.unlink()
  for name in ("owl", "eagle"):
    origin = model_card.Origin(name, None, 0, 0, {}, "0")
    assert model_card.write(saved, "onnx", tmp_path, origin) is None
    assert f"# {name}" in card.read_text()
  (tmp_path / "m.npz").touch()
  (tmp_path / "m.md").write_text(notes)
  assert model_card.write(saved, "big_vision", tmp_path / "m.npz", origin) == tmp_path / "m.md"


def test_the_card_states_metrics_and_licences_and_no_folders(tmp_path):
  data = tmp_path / "secret" / "records"
  data.mkdir(parents=True)
  (data / "manifest.json").write_text(json.dumps({"records": 3, "licence": "CC0", "source": "me"}))
  config = ConfigDict(
    {
      "data": {"source": call(ArrayRecord, path=str(data)), "batch_size": 4},
      "objective": call(Clip),
      "optimizer": call(adamw, learning_rate=0.1),
    }
  )
  metrics = {"retrieval/text_to_image_r10": 12.345}
  origin = model_card.Origin("/home/me/runs/owl", config, 5, 20, metrics, "0 at abc")
  card = model_card.card(load_bundle(GOLDENS["huggingface_clip"][0]), "onnx", "out", origin)
  assert (
    "# owl" in card
    and "exported by clip_jax 0 at abc" in card
    and "ArrayRecord(path='records')" in card
  )
  assert "| retrieval/text_to_image_r10 | 12.35 |" in card or "| 12.34 |" in card
  assert "records: 3, source: me" in card and "- training data: CC0" in card
  assert "secret" not in card and "/home" not in card and "weights: not stated" in card


@pytest.fixture
def hub(monkeypatch):
  """A stand-in for huggingface_hub that records what it is asked."""
  made = types.ModuleType("huggingface_hub")
  made.asked, made.fails = [], set()

  class HfApi:
    def whoami(self):
      if "whoami" in made.fails:
        raise OSError("401 Unauthorized")

    def create_repo(self, name, **options):
      made.asked.append((name, options))
      return f"https://hub/{name}"

    def upload_folder(self, *, repo_id, folder_path, allow_patterns, commit_message):
      if "upload" in made.fails:
        raise OSError("connection lost")
      made.asked.append((repo_id, folder_path, sorted(allow_patterns)))

  made.HfApi = HfApi
  monkeypatch.setitem(sys.modules, "huggingface_hub", made)
  return made


def test_a_push_uploads_what_was_written_and_nothing_else(run, hub, tmp_path, capsys):
  (tmp_path / "private.json").write_text("{}")
  flags = [f"--model={run}", "--format=huggingface", f"--out={tmp_path}"]
  assert export.main([*flags, "--push=me/owl"]) == 0
  (name, options), (repository, folder, files) = hub.asked
  assert name == repository == "me/owl" and options == {"private": True, "exist_ok": True}
  assert {"README.md", "training_config.json", "config.json", "model.safetensors"} <= {*files}
  assert {*files, "private.json"} == {p.name for p in tmp_path.iterdir()}
  assert folder == str(tmp_path) and "Uploaded to https://hub/me/owl" in capsys.readouterr().out
  hub.fails.add("upload")
  with pytest.raises(UserError, match="exported to .*connection lost Rerun"):
    export.main([*flags, "--push=me/owl", "--public"])
  assert hub.asked[-1] == ("me/owl", {"private": False, "exist_ok": True})


def test_a_push_that_cannot_work_is_refused_before_the_export(run, hub, tmp_path):
  flags = [f"--model={run}", "--format=huggingface", f"--out={tmp_path / 'out'}"]
  hub.fails.add("whoami")
  for extra, message in (
    (["--push=owl"], "--push=owl is not ORG/NAME"),
    (["--push=me/owl"], "does not accept this login: 401.*hf auth login"),
    (["--public"], "--public is about the repository of --push"),
  ):
    with pytest.raises(UserError, match=message):
      export.main([*flags, *extra])
  with pytest.raises(UserError, match="--push uploads a directory"):
    export.main(["--model=x", "--format=big_vision", "--out=f.npz", "--push=me/owl"])
  assert not (tmp_path / "out").exists()


def test_towers_that_other_libraries_lack_are_exported_to_stablehlo(tmp_path):
  towers = dict(
    image=call(
      BitResnet,
      stages=(1,),
      width=4,
      groups=2,
      pool="flat",
      stem="small",
      block="basic",
      image_size=SIZE,
      dtype="float32",
    ),
    text=text_tower(pool="mean"),
  )
  made, spec = learner(**towers).model, model_call(**towers)
  _, params, stats = split_state(made)
  stablehlo.write(ModelBundle(spec, params, stats, 10.0, 0.0, None, None), tmp_path)
  given = batch(3)
  for name, x in (("encode_image", given["image"]), ("encode_text", given["tokens"])):
    program = jax_export.deserialize(bytearray((tmp_path / f"{name}.stablehlo").read_bytes()))
    encode = jax.jit(lambda model, x: getattr(model, name)(x))
    np.testing.assert_allclose(program.call(x), encode(made, x), atol=1e-5)


def test_stablehlo_programs_do_not_depend_on_the_exporting_platform(monkeypatch, tmp_path):
  towers = dict(image=image_tower(dtype="auto"), text=text_tower(dtype="auto"))
  _, params, stats = split_state(learner(**towers).model)
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert target_platform() == "gpu"
  stablehlo.write(ModelBundle(model_call(**towers), params, stats, 10.0, 0.0, None, None), tmp_path)
  for name in ("encode_image", "encode_text"):
    program = jax_export.deserialize(bytearray((tmp_path / f"{name}.stablehlo").read_bytes()))
    assert "stablehlo" in program.mlir_module() and "bf16" not in program.mlir_module()
  assert target_platform() == "gpu"


@pytest.mark.parametrize(
  "changes, form, message",
  [
    (
      {"image.pool": "gap", "image.class_position": False},
      "open_clip",
      "from timm, which has none with|Vit's patch_bias is False, but must be True",
    ),
    ({"image.pre_norm": False}, "huggingface", "Vit's pre_norm is False, but must be True"),
    ({"text.pool": "mean"}, "open_clip", "pool is 'mean', but must be 'last' or 'eot'"),
    ({"text.causal": False}, "open_clip", "mask_padding is True, but must be False"),
    ({"text.causal": False}, "huggingface", "causal is False, but must be True"),
    ({"text.activation": "quick_gelu"}, "open_clip", "one quick_gelu for both towers.*'gelu' and"),
    ({"image.norm_eps": 1e-5}, "big_vision", "big_vision has no equivalent.*norm_eps is 1e-05"),
    ({"image_projection": "affine"}, "huggingface", "image_projection is 'affine'"),
  ],
)
def test_models_that_a_format_lacks_are_refused(run, changes, form, message, tmp_path):
  saved = load_bundle(run)
  saved.model.unlock()
  for path, value in changes.items():
    *sections, name = path.split(".")
    section = saved.model
    for part in sections:
      section = section[part]
    section[name] = value
  module = {"open_clip": open_clip, "huggingface": hugging_face, "big_vision": big_vision}[form]
  with pytest.raises(UserError, match=message):
    module.write(saved, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_other_towers_a_logit_bias_and_a_missing_end_token_are_refused(run, tmp_path):
  from clip_jax.data.tokenizer import SentencePiece

  saved = load_bundle(run)
  saved.tokenizer = SentencePiece(context_length=8, eos=False)
  with pytest.raises(UserError, match="pools at a fixed end token.*adds an end token"):
    open_clip.write(saved, tmp_path / "out")
  saved.bias = -10.0
  with pytest.raises(UserError, match="no logit bias, but this model's is -10"):
    hugging_face.write(saved, tmp_path / "out")
  saved.model.unlock()
  saved.model.image = call(BitResnet)
  for module, there in (
    (open_clip, "open_clip has"),
    (hugging_face, "SiglipModel have"),
    (big_vision, "big_vision has"),
  ):
    with pytest.raises(UserError, match=f"{there} no equivalent of BitResnet.*can export to"):
      module.write(saved, tmp_path / "out")
  saved.model.image = call(ClipResnet, stages=(1, 1, 1))
  with pytest.raises(UserError, match="has four stages, but this model has 3"):
    open_clip.write(saved, tmp_path / "out")
  saved.model.text = call(BitResnet)
  saved.model.image = load_bundle(run).model.image
  with pytest.raises(UserError, match="no equivalent of BitResnet"):
    open_clip.write(saved, tmp_path / "out")


def test_wrong_flags_are_errors(tmp_path):
  for arguments, message in (
    ([], "Which model"),
    (["--model=x"], "Which format. Set --format to one of clip_jax, open_clip"),
    (["--model=x", "--format=onx"], "--format=onx is not one of .* Did you mean 'onnx'"),
    (["--model=x", "--format=pdf"], "--format=pdf is not one of"),
    (["--model=x", "--format=open_clip"], "Set --out=DIR"),
    (["--model=x", "--format=open_clip", "--out=y.npz"], "--format=big_vision writes a FILE.npz"),
    ([f"--model={tmp_path}/x", "--format=open_clip", "--out=y"], "No model found in"),
  ):
    with pytest.raises(UserError, match=message):
      export.main(arguments)


THEIRS = """
import sys
import numpy as np, open_clip, torch, transformers
from PIL import Image
folder, form, out = sys.argv[1:]
rng = np.random.default_rng(0)
image = Image.fromarray(rng.integers(0, 256, (70, 90, 3)).astype(np.uint8))
ends = 1 if "siglip" in folder else 63
tokens = torch.tensor([[5, 6, 7, 8, 9, 10, 11, ends]])
with torch.no_grad():
  if form == "open_clip":
    model, _, transform = open_clip.create_model_and_transforms("local-dir:" + folder)
    model.eval()
    z_image = model.encode_image(transform(image)[None])
    z_text = model.encode_text(tokens)
  else:
    made = transformers.SiglipModel if "siglip" in folder else transformers.CLIPModel
    model, report = made.from_pretrained(folder, output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    made = (transformers.SiglipImageProcessorPil if "siglip" in folder
            else transformers.CLIPImageProcessorPil)
    pixels = made.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    found = model.eval()(input_ids=tokens, pixel_values=pixels)
    z_image, z_text = found.image_embeds, found.text_embeds
np.savez(out, z_image=z_image, z_text=z_text, tokens=tokens, image=np.asarray(image),
         scale=float(model.logit_scale.exp()))
"""


@pytest.fixture(name="python", scope="module")
def foreign(tmp_path_factory):
  """Path of a Python with the other libraries: CLIP_JAX_FOREIGN_PYTHON, or a new environment."""
  if "CLIP_JAX_FOREIGN_PYTHON" in os.environ:
    return os.environ["CLIP_JAX_FOREIGN_PYTHON"]
  folder = tmp_path_factory.mktemp("foreign")
  subprocess.run([sys.executable, "-m", "venv", folder], check=True)
  subprocess.run(
    [
      folder / "bin/pip",
      "install",
      "--quiet",
      "torch",
      "torchvision",
      "open_clip_torch",
      "transformers",
    ],
    check=True,
  )
  return str(folder / "bin/python")


@pytest.mark.slow
@pytest.mark.parametrize(
  "name, form",
  [
    ("open_clip_vit", "open_clip"),
    ("open_clip_quickgelu", "open_clip"),
    ("open_clip_resnet", "open_clip"),
    ("open_clip_quickgelu", "huggingface"),
    ("huggingface_clip", "huggingface"),
    ("huggingface_clip", "open_clip"),
    ("huggingface_siglip", "huggingface"),
  ],
)
def test_the_other_library_gives_the_same_embeddings(python, name, form, tmp_path):
  folder = tmp_path / name
  written(GOLDENS[name][0], form, folder)
  for file in folder.glob("token*"):
    file.unlink()  # The script passes token ids, so it needs no tokenizer.
  out = tmp_path / "theirs.npz"
  subprocess.run([python, "-c", THEIRS, folder, form, out], check=True)
  theirs, here = np.load(out), clip_jax.load(folder)
  unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
  np.testing.assert_allclose(
    here.encode_image(theirs["image"][None]), unit(theirs["z_image"]), rtol=1e-4, atol=2e-6
  )
  encode = jax.jit(lambda model, x: model.encode_text(x))
  z_text = encode(here.model, theirs["tokens"].astype(np.int32))
  np.testing.assert_allclose(z_text, unit(theirs["z_text"]), rtol=1e-4, atol=2e-6)
  assert here.scale == pytest.approx(float(theirs["scale"]), rel=1e-6)


TIMM = """
import sys
import numpy as np, open_clip, torch
folder, out = sys.argv[1:]
made = dict(np.load(out))
model = open_clip.create_model("local-dir:" + folder).eval()
pixels = (torch.from_numpy(made["image"]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5
with torch.no_grad():
  z_text = model.encode_text(torch.tensor(made["tokens"]))
  made |= dict(z_image=model.encode_image(pixels), z_text=z_text, bias=float(model.logit_bias))
np.savez(out, **made)
"""


@pytest.mark.slow
def test_open_clip_gives_the_same_embeddings_for_a_full_size_siglip(python, tmp_path):
  """timm only has SigLIP towers of the published sizes; their weights are random here."""
  from flax import nnx

  from clip_jax.config import build
  from clip_jax.data.checkpoint_tokenizer import MissingTokenizer
  from clip_jax.data.resize_then_crop import ResizeThenCrop

  spec = call(
    TwoTowers,
    image=call(Vit, size="B", patch=32, image_size=256, pool="map", dtype="float32"),
    text=call(
      TextTransformer,
      size="mu",
      vocab_size=64,
      context_length=8,
      mask_padding=False,
      dtype="float32",
    ),
    embed_dim=768,
    image_projection="none",
    text_projection="affine",
  )
  _, params, stats = split_state(build(spec, rngs=nnx.Rngs(0)))
  open_clip.write(
    ModelBundle(
      spec,
      params,
      stats,
      10.0,
      -5.0,
      ResizeThenCrop(256, "squash"),
      MissingTokenizer("none", 8, 64),
    ),
    tmp_path,
  )
  rng, out = np.random.default_rng(0), tmp_path / "x.npz"
  np.savez(
    out,
    image=rng.integers(0, 256, (2, 256, 256, 3)).astype(np.uint8),
    tokens=rng.integers(0, 64, (2, 8)),
  )
  subprocess.run([python, "-c", TIMM, tmp_path, out], check=True)
  made, here = np.load(out), clip_jax.load(tmp_path)
  unit = lambda z: z / np.linalg.norm(z, axis=1, keepdims=True)
  np.testing.assert_allclose(
    here.encode_image(made["image"]), unit(made["z_image"]), rtol=1e-4, atol=1e-5
  )
  z_text = jax.jit(lambda model, x: model.encode_text(x))(here.model, np.int32(made["tokens"]))
  np.testing.assert_allclose(z_text, unit(made["z_text"]), rtol=1e-4, atol=1e-5)
  assert here.bias == float(made["bias"]) == -5
