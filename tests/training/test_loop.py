"""The training loop, run in this process: early errors, damaged records, resuming, interrupts."""

import dataclasses
import errno
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clip_jax.config import build, call, to_json
from clip_jax.data import Examples, Subset
from clip_jax.data.augment.simclr import SimclrColors
from clip_jax.data.crops import RandomResizedCrop
from clip_jax.data.sources.openclipart import OpenClipart
from clip_jax.data.views import ImageView, Views
from clip_jax.errors import UserError
from clip_jax.evaluators import Evaluator, Result
from clip_jax.inference.loading import load
from clip_jax.model.learner import split_state
from clip_jax.model.transfer import resample_positions
from clip_jax.objectives.clip import Clip
from clip_jax.objectives.siglip import Siglip
from clip_jax.study.budgets import compute_of
from clip_jax.training import initialise, loop as loop_lib, resume, setup as setup_lib, startup
from clip_jax.training.checkpoint import Checkpoints
from clip_jax.training.experiment import Training
from clip_jax.training.schedules import warmup_constant
from run_config import get_config
from tiny import largest_difference


class Damaged:
  """A source with a share of truncated records."""

  def __init__(self, share: float = 0.0):
    self.source, self.share = OpenClipart(), share

  def __len__(self):
    return len(self.source)

  def broken(self, i):
    return i % 1000 < 1000 * self.share

  def __getitem__(self, i):
    record = self.source[i]
    return {**record, "image": record["image"][:60]} if self.broken(i) else record


class Hungry(Clip):
  """An objective that reads an entry that the pipeline does not produce."""

  inputs = ("image", "view_a", "tokens")


def small(steps=6, seed=0, **changes):
  config = get_config(str(steps))
  config.seed = seed
  config.evaluators = config.final_evaluators = {}
  config.train.save_every = 0
  for name, value in changes.items():
    section, _, rest = name.partition("__")
    if rest:
      config[section][rest] = value
    else:
      with config.unlocked():
        config[section] = value
  return config


def test_damaged_records_are_replaced_and_reported(tmp_path, capsys):
  config = small(45)
  config.data.source = call(Damaged, share=0.003)
  assert loop_lib.run(config, tmp_path) == 0
  printed = capsys.readouterr().out
  assert "damaged records were replaced by others" in printed
  reported = printed.split("indices in the source: ")[1].split(".")[0].split(", ")
  assert all(Damaged(0.003).broken(int(n)) for n in reported)


def test_too_many_damaged_records_stop_the_run(tmp_path):
  config = small(45)
  config.data.source = call(Damaged, share=0.05)
  with pytest.raises(UserError, match=r"could not be read, more than 1%; their .* source: \d+, "):
    loop_lib.run(config, tmp_path)


def test_run_resumed_on_another_mesh_has_the_same_losses(tmp_path):
  losses = {}
  for name, lengths in {"straight": [(6, 1)], "resumed": [(3, 1), (6, 4)]}.items():
    for steps, fsdp in lengths:
      config = small(steps, mesh__fsdp=fsdp, train__log_every=1)
      # This schedule does not depend on the length of the run, so both runs start alike.
      config.optimizer.schedule = call(warmup_constant, warmup=2)
      loop_lib.run(config, tmp_path / name)
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    losses[name] = [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]
  assert len(losses["straight"]) == 6
  np.testing.assert_allclose(losses["resumed"], losses["straight"], rtol=1e-4)


def test_config_mistakes_raise_before_compiling(tmp_path):
  cases = [
    (
      dict(data__batch_size=100),
      "batch_size 100 is not divisible by 8 devices; nearest that "
      "are: 96, 104. Set --config.data.batch_size",
    ),
    (dict(data__batch_size=0), "config.data.batch_size is 0; Data expects an integer"),
    (dict(data__batch_size=None), "config.data.batch_size is None; Data expects"),
    (dict(train__microbatches=8), "32 is not divisible by 8 devices x 8 microbatches"),
    (dict(mesh__data=3), "mesh data=3 fsdp=1 tensor=1 does not match the number of devices, 8"),
    (
      dict(objective=call(Hungry)),
      r"Hungry reads image, view_a, tokens, .* produces only "
      r"image, tokens\. Add to config.data.views.images: view_a",
    ),
    (
      dict(augment__view_a=call(SimclrColors)),
      "config.augment has view_a, but Clip reads only image, tokens",
    ),
    (dict(train__samples=10), "Set exactly one"),
    (dict(train__steps=None), "given are none"),
    (dict(train__steps=0), "steps is 0; Training expects"),
  ]
  for changes, message in cases:
    objective = changes.pop("objective", None)
    config = small(**changes)
    if objective:
      config.objective = objective
    with pytest.raises(UserError, match=message):
      setup_lib.build_setup(config)


def test_tower_and_tokenizer_mismatch_is_an_error():
  config = small()
  config.model.text.context_length = 9
  with pytest.raises(UserError, match="context_length is 8, but the text tower's is 9"):
    setup_lib.build_setup(config)
  config = small()
  config.model.text.vocab_size = 100
  with pytest.raises(UserError, match="4096 tokens, .*vocab_size is 100"):
    setup_lib.build_setup(config)


def test_unwritable_workdir_is_an_error(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(UserError, match="Cannot write to --workdir=.*Choose a folder"):
    loop_lib.run(small(), tmp_path / "file" / "run")


def test_workdir_of_a_different_model_is_an_error_that_lists_the_arrays(tmp_path):
  loop_lib.run(small(2), tmp_path)
  before = {name: (tmp_path / name).read_text() for name in ("config.json", "metrics.jsonl")}
  config = small(4)
  config.model.embed_dim = 16
  with pytest.raises(
    UserError,
    match=r"of a different model; .*\n.*kernel: saved \(32, 32\), "
    r"expected \(32, 16\)",
  ):
    loop_lib.run(config, tmp_path)
  assert before == {name: (tmp_path / name).read_text() for name in before}


def larger(workdir, steps=2, **changes):
  """A config initialised from a run of `small`, with larger images and longer texts."""
  config = small(steps, train__init_from=str(workdir), **changes)
  config.model.image.image_size = config.data.views.images.image.crop.size = 48
  config.model.text.context_length = config.data.views.tokenizer.context_length = 12
  return config


def saved(config, workdir):
  """Saves the initial values of a run to `workdir` as if it had made one step."""
  made = setup_lib.build_setup(config)
  checkpoints = Checkpoints(workdir / "checkpoints")
  checkpoints.save(1, jax.jit(made.init_state, static_argnums=0)(config.seed), config)
  checkpoints.close()
  (workdir / "config.json").write_text(to_json(config))


def test_run_initialises_from_another_model_and_resumes_from_itself(tmp_path):
  config = small(seed=1)
  config.objective = call(Siglip)  # The objective may differ, because only the model is loaded.
  saved(config, tmp_path / "first")
  theirs = split_state(load(tmp_path / "first").model)[1]
  config = larger(tmp_path / "first")
  made = setup_lib.build_setup(config)
  fresh = made.init_state(0)
  with jax.set_mesh(made.mesh):
    state = jax.device_put(fresh, jax.tree.map(lambda x: x.sharding, made.state))
    ours = jax.device_get(initialise.init_from(made, state))
  model = ours.params["model"]
  for name in ("stack", "embedding", "norm"):
    assert largest_difference(model["image"][name], theirs["image"][name]) == 0
  assert largest_difference(model["text_projection"], theirs["text_projection"]) == 0
  np.testing.assert_allclose(
    model["image"]["positions"],
    resample_positions(np.asarray(theirs["image"]["positions"]), (4, 4), (6, 6)),
    atol=1e-6,
  )
  np.testing.assert_array_equal(model["text"]["positions"][:8], theirs["text"]["positions"])
  np.testing.assert_array_equal(
    model["text"]["positions"][8:], fresh.params["model"]["text"]["positions"][8:]
  )
  assert largest_difference(ours.params["objective"], fresh.params["objective"]) == 0
  assert largest_difference(ours.opt_state, fresh.opt_state) == 0 and ours.step == 0

  assert loop_lib.run(config, tmp_path / "second") == 0
  assert loop_lib.run(larger("deleted"), tmp_path / "second") == 0  # init_from is ignored now.
  assert load(tmp_path / "second").model.image.image_size == (48, 48)


def test_run_cannot_start_from_a_missing_or_different_model(tmp_path):
  with pytest.raises(UserError, match="No model found in .*nowhere"):
    loop_lib.run(larger(tmp_path / "nowhere"), tmp_path / "run")
  saved(small(), tmp_path / "first")
  config = larger(tmp_path / "first")
  config.model.embed_dim = 16
  with pytest.raises(
    UserError,
    match=r"(?s)train.init_from has a different model; 2 arrays .*"
    r"image_projection/kernel: saved \(32, 32\), expected \(32, 16\)",
  ):
    loop_lib.run(config, tmp_path / "run")
  assert not (tmp_path / "run" / "config.json").exists()


def diverging(**changes):
  """A config for which the second step and all later ones are not finite."""
  config = small(12, **changes)
  config.optimizer = call(optax.sgd, learning_rate=1e30)
  return config


def test_nonfinite_step_stops_the_run_with_a_diagnosis(tmp_path):
  config = diverging(train__log_every=4, train__save_every=1)
  with pytest.raises(
    UserError,
    match=r"Step 2 was not finite: loss nan; gradient norms: image nan,"
    r" .*text nan, .*\. Indices of its 32 records in the source: \d+, .* and 22 "
    r"more; .*Newest checkpoint: step 1\.",
  ):
    loop_lib.run(config, tmp_path)
  written = json.loads((tmp_path / "nonfinite.json").read_text())
  data = build(config.data)
  positions = np.arange(32, 64)  # The second batch.
  assert (
    written["step"] == 2
    and written["loss"] == "nan"
    and set(written["grad_norms"])
    == {"image", "text", "image_projection", "text_projection", "objective"}
  )
  assert sorted(written["records"]) == sorted(
    Examples(data.source, data.views, seed=0).indices(positions).tolist()
  )
  assert [int(p.name) for p in (tmp_path / "checkpoints").iterdir()] == [1]


def test_nonfinite_steps_are_skipped_up_to_the_allowance(tmp_path):
  config = diverging(train__log_every=2, train__skip_nonfinite=4)
  with pytest.raises(UserError, match="Step 6 was not finite.*Newest checkpoint: none"):
    loop_lib.run(config, tmp_path)
  lines = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
  assert {line["step"]: line["train/skipped_steps"] for line in lines} == {1: 0, 2: 1, 4: 3}


def test_resuming_checks_the_number_of_skipped_steps():
  resume.check_skipped(3, 3)
  with pytest.raises(UserError, match="skipped 3 steps .*skip_nonfinite=0. Set .* to 3 or more"):
    resume.check_skipped(3, 0)


def test_step_that_is_finite_when_recomputed_suggests_faulty_hardware(tmp_path):
  loop_lib.run(small(2), tmp_path)
  made = setup_lib.build_setup(small(4))
  checkpoints = loop_lib.Checkpoints(tmp_path / "checkpoints")
  with pytest.raises(
    UserError,
    match=r"Step 3 was not finite: loss [\d.]+; .*recomputed and are "
    "finite, .*hardware may be faulty.*Newest checkpoint: step 2",
  ):
    raise loop_lib.nonfinite(made, checkpoints.restore(made.state), checkpoints)


def test_full_disk_stops_the_run_with_a_message(tmp_path, monkeypatch):
  def full(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(loop_lib.MetricWriter, "log", full)
  with pytest.raises(UserError, match="No space left to write.*No space left on device"):
    loop_lib.run(small(2), tmp_path)


def test_steps_samples_and_epochs_are_interchangeable():
  for length in (
    dict(steps=100),
    dict(samples=3200),
    dict(samples="3.2k"),
    dict(epochs=3200 / 4562),
  ):
    training = build(call(Training, **length))
    assert training.total_steps(batch_size=32, examples=4562) == 100


def test_data_size_selects_the_same_records_for_every_seed():
  for size, n in ((1000, 1000), ("1k", 1000), ("10%", 456), (None, 4562)):
    for seed in (0, 1):
      config = small(data__size=size)
      config.seed = seed
      data = build(config.data)
      assert len(data.source) == n
      if n < 4562:
        expected = Subset(OpenClipart(), n)
        assert data.source[n - 1]["key"] == expected[n - 1]["key"]


def test_summary_says_how_often_each_example_is_seen(tmp_path):
  config = small(data__size="1k", train__samples="3.2k", train__steps=None)
  made = setup_lib.build_setup(config)
  lines = startup.summary(made, tmp_path, 0)
  assert made.total_steps == 100
  assert lines[:2] == [
    "data       1,000 records, each seen 3.2 times: 3,200 samples",
    "           Subset: 1,000 of 4,562 records at random, seed 0",
  ]


def test_summary_says_the_dtype_and_that_bfloat16_is_slower_on_a_cpu(tmp_path):
  config = small()
  assert startup.precision(setup_lib.build_setup(config)) == ["computes   in float32"]
  config.model.text.dtype = "bfloat16"
  lines = startup.summary(setup_lib.build_setup(config), tmp_path, 0)
  assert "computes   in float32 (image) and bfloat16 (text)" in lines
  assert [line for line in lines if line.endswith(": --config.model.text.dtype=auto")]
  config.model.text.dtype = "auto"
  assert startup.precision(setup_lib.build_setup(config)) == [
    'computes   in float32, by dtype="auto": CLIP_JAX_CPU_DTYPE is set'
  ]


def test_summary_suggests_huge_pages_where_they_are_opt_in(tmp_path, monkeypatch):
  setting = tmp_path / "enabled"
  monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
  assert startup.huge_pages(setting) == []
  setting.write_text("[always] madvise never\n")
  assert startup.huge_pages(setting) == []
  setting.write_text("always [madvise] never\n")
  (line,) = startup.huge_pages(setting)
  assert "GLIBC_TUNABLES=glibc.malloc.hugetlb=1" in line
  monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
  assert startup.huge_pages(setting) == []
  monkeypatch.delenv("GLIBC_TUNABLES")
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  assert startup.huge_pages(setting) == []


def test_impossible_data_size_raises_before_compiling():
  with pytest.raises(UserError, match="Subset size 5k is not between 1 and 4,562"):
    setup_lib.build_setup(small(data__size="5k"))
  with pytest.raises(UserError, match="samples is 'many'; Training expects a number of rec"):
    setup_lib.build_setup(small(train__samples="many", train__steps=None))


class Interrupted(Evaluator):
  """An evaluator without metrics that raises SIGINT `times` times."""

  def __init__(self, times: int):
    self.times = times

  def evaluate(self, context):
    for _ in range(self.times):
      signal.raise_signal(signal.SIGINT)
    return Result({})


def losses_of(workdir):
  return [
    (line["step"], line["train/loss"])
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    if "train/loss" in line
  ]


def test_interrupted_run_is_saved_and_resumes_with_the_same_losses(tmp_path, capsys):
  handlers = lambda: [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
  before = handlers()
  config = small(train__log_every=1)
  loop_lib.run(config, tmp_path / "straight")
  config.train.eval_every, config.evaluators = 4, {"none": call(Interrupted, times=1)}
  with pytest.raises(KeyboardInterrupt):
    loop_lib.run(config, tmp_path / "run")
  assert "Ctrl-C: saved at step 5; rerun" in capsys.readouterr().out
  assert Checkpoints(tmp_path / "run" / "checkpoints").latest() == 5 and handlers() == before
  config.train.eval_every, config.evaluators = 0, {}
  assert loop_lib.run(config, tmp_path / "run") == 0
  assert losses_of(tmp_path / "run") == losses_of(tmp_path / "straight")


def test_second_interrupt_stops_at_once_and_leaves_valid_checkpoints(tmp_path):
  config = small(train__log_every=1, train__save_every=2, train__eval_every=5)
  config.evaluators = {"none": call(Interrupted, times=2)}
  with pytest.raises(KeyboardInterrupt):
    loop_lib.run(config, tmp_path)
  names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
  assert sorted(names) == ["4", "5"]  # Both are complete: no temporary folder is left.
  config.train.eval_every, config.evaluators = 0, {}
  assert loop_lib.run(config, tmp_path) == 0
  assert [step for step, _ in losses_of(tmp_path)] == [1, 2, 3, 4, 5, 6]


def lines_of(workdir):
  """The lines of metrics.jsonl that are about training."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return [line for line in lines if "train/loss" in line]


class Similar:
  """An objective that reads two views and no text: their mean cosine distance."""

  inputs = ("view_a", "view_b")

  def embed(self, model, batch, *, train, key):
    assert set(batch) == set(self.inputs)
    return {name: model.encode_image(batch[name], train=train) for name in self.inputs}

  def loss(self, embeddings, *, train):
    distance = 1 - (embeddings["view_a"] * embeddings["view_b"]).sum(1)
    return distance.mean(), {"similar/distance": distance.mean()}

  def logit(self):
    return jnp.float32(1), jnp.float32(0)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_objective_that_reads_no_tokens_trains(tmp_path, microbatches):
  config = small(2, train__log_every=1, train__microbatches=microbatches)
  view = call(ImageView, crop=call(RandomResizedCrop, size=32))
  config.data.views.images = {"view_a": view, "view_b": view}
  config.objective = call(Similar)
  assert loop_lib.run(config, tmp_path) == 0
  losses = [line["train/loss"] for line in lines_of(tmp_path)]
  assert len(losses) == 2 and losses[1] < losses[0]
  made = setup_lib.build_setup(config)
  assert made.compute.text == 0 < made.compute.image
  assert compute_of(config) == made.compute
  state = Checkpoints(tmp_path / "checkpoints").restore(made.state)
  before = made.init_state(0).params["model"]
  assert largest_difference(state.params["model"]["image"], before["image"]) > 0


class Indexed(Clip):
  """An objective that reads the index of each record, and reports the sum of all of them."""

  inputs = ("image", "tokens", "index")

  def embed(self, model, batch, *, train, key):
    return {**super().embed(model, batch, train=train, key=key), "index": batch["index"]}

  def loss(self, embeddings, *, train):
    index = embeddings.pop("index")
    assert index.dtype == jnp.int32
    loss, metrics = super().loss(embeddings, train=train)
    return loss, {**metrics, "sum_of_indices": index.sum()}


def test_objective_may_read_the_index_of_each_record(tmp_path):
  config = small(2, train__log_every=1, train__microbatches=2, data__size=1000)
  config.objective = call(Indexed, keep_patches=0.5)
  assert loop_lib.run(config, tmp_path) == 0
  data = build(config.data)
  indices = Examples(data.source, data.views, seed=0).indices(np.arange(64))
  sums = indices.reshape(2, 32).sum(1)  # Of the records in the training data, after `size`.
  assert [line["train/sum_of_indices"] for line in lines_of(tmp_path)] == sums.tolist()
  config.augment = {"index": call(SimclrColors)}
  with pytest.raises(UserError, match="config.augment has index"):
    setup_lib.build_setup(config)


def test_indices_have_32_bits_on_the_device_if_that_is_enough():
  assert setup_lib.index_dtype(2**31) == np.int32
  with pytest.raises(UserError, match="2,147,483,649 indices need 64 bits.*JAX_ENABLE_X64"):
    setup_lib.index_dtype(2**31 + 1)
  with jax.enable_x64(True):
    assert setup_lib.index_dtype(2**31 + 1) == np.int64


class Unscaled(Clip):
  """An objective without `logit`."""

  logit = None


class Callable:
  """An evaluator without `evaluate` and `figure`."""

  def __call__(self, embedder):
    return {}


class Untexted(Views):
  """Views that declare an entry that their examples do not have."""

  outputs = ("image", "tokens", "view_a")


def test_parts_that_lack_something_are_named_before_anything_is_compiled(monkeypatch):
  monkeypatch.setattr(jax.stages.Lowered, "compile", None)
  with pytest.raises(UserError, match=r"config.objective, Unscaled, .* has no logit\(\)"):
    setup_lib.build_setup(small(objective=call(Unscaled)))
  for section in ("evaluators", "final_evaluators"):
    with pytest.raises(
      UserError, match=rf"{section}.own, Callable, .*evaluate\(.*; .* no figure\("
    ):
      setup_lib.build_setup(small(**{section: {"own": call(Callable)}}))
  with pytest.raises(UserError, match=r"config.augment.image, Callable, .*__call__\(image, key\)"):
    setup_lib.build_setup(small(augment={"image": call(Callable)}))
  with pytest.raises(UserError, match="config.optimizer, Callable, .* no init; it has no update"):
    setup_lib.build_setup(small(optimizer=call(Callable)))
  with pytest.raises(UserError, match="source of Data, Callable, .* no __len__()"):
    setup_lib.build_setup(small(data__source=call(Callable)))
  config = small(objective=call(Hungry))
  views = {name: value for name, value in config.data.views.items() if name != "fn"}
  config.data.views = call(Untexted, **views)
  with pytest.raises(UserError, match="its first example has no view_a"):
    setup_lib.build_setup(config)


def test_setup_is_plain_data_and_the_step_is_compiled_once(tmp_path, monkeypatch):
  made = setup_lib.build_setup(small())
  names = [field.name for field in dataclasses.fields(made)]
  assert not [name for name in vars(type(made)) if isinstance(getattr(type(made), name), property)]
  assert {name for name in dir(made) if not name.startswith("_")} == set(names)
  count = []
  make = setup_lib.step_lib.make_train_step
  monkeypatch.setattr(
    setup_lib.step_lib, "make_train_step", lambda *a, **k: count.append(0) or make(*a, **k)
  )
  loop_lib.run(small(3), tmp_path)
  assert len(count) == 1


def test_logged_metrics_are_means_over_the_steps_since_the_last_line(tmp_path):
  for name, every in (("each", 1), ("some", 4)):
    loop_lib.run(small(7, train__log_every=every), tmp_path / name)
  each, some = (
    {line.pop("step"): line for line in lines_of(tmp_path / name)} for name in ("each", "some")
  )
  assert list(each) == [1, 2, 3, 4, 5, 6, 7] and list(some) == [1, 4, 7]
  names = ("loss", "grad_norm", "param_norm", "update_norm", "clip/logit_scale")
  for last, window in ((1, [1]), (4, [2, 3, 4]), (7, [5, 6, 7])):
    for name in names:
      mean = np.mean([each[step][f"train/{name}"] for step in window])
      assert some[last][f"train/{name}"] == pytest.approx(mean, rel=1e-6)
    assert some[last]["train/learning_rate"] == each[last]["train/learning_rate"]


class Shaky(Clip):
  """An objective whose loss is not finite if the sum of the indices of a batch is odd."""

  inputs = ("image", "tokens", "index")

  def embed(self, model, batch, *, train, key):
    return {**super().embed(model, batch, train=train, key=key), "index": batch["index"]}

  def loss(self, embeddings, *, train):
    odd = embeddings.pop("index").sum() % 2
    loss, metrics = super().loss(embeddings, train=train)
    return jnp.where(odd, jnp.inf, loss), metrics


def test_skipped_steps_are_counted_and_left_out_of_the_means(tmp_path):
  config = small(9, train__skip_nonfinite=9)
  config.objective = call(Shaky)
  data = build(config.data)
  sums = Examples(data.source, data.views, seed=0).indices(np.arange(9 * 32)).reshape(9, 32).sum(1)
  odd = sums % 2 == 1
  assert 0 < odd[1:].sum() < 8, "choose another seed"
  lines = {}
  for every in (1, 8):
    config.train.log_every = every
    assert loop_lib.run(config, tmp_path / str(every)) == 0
    lines[every] = {line["step"]: line for line in lines_of(tmp_path / str(every))}
  each = [lines[1][step]["train/loss"] for step in range(1, 10)]
  assert [loss is None for loss in each] == odd.tolist()
  finite = [loss for loss in each[1:8] if loss is not None]
  assert lines[8][8]["train/loss"] == pytest.approx(np.mean(finite), rel=1e-6)
  assert lines[8][8]["train/skipped_steps"] == odd[:8].sum()
