"""The report: metrics files that survive restarts, and readable console output."""

import io
import json
import math
import struct
import sys
import types

import jax
import jax.numpy as jnp
from PIL import Image
import pytest

from clip_jax.cli.formatting import duration, evaluations, number, table
from clip_jax.errors import UserError
from clip_jax.training.metrics import MetricWriter, WindowMeans, progress_line, read_metrics


class Terminal(io.StringIO):
  def isatty(self):
    return True


class Clock:
  """A clock that the test advances."""

  def __init__(self):
    self.now = 100.0

  def __call__(self):
    return self.now


def quiet(workdir, **kwargs):
  return MetricWriter(workdir, **{"total_steps": 100, "stream": io.StringIO(), **kwargs})


def lines(workdir):
  def no_constant(name):
    raise AssertionError(f"{name} is not JSON")

  return [
    json.loads(line, parse_constant=no_constant)
    for line in (workdir / "metrics.jsonl").read_text().splitlines()
  ]


def events(workdir):
  """Reads (step, name, value) of every scalar, and the steps at which a restart purges."""
  from tensorboardX.proto.event_pb2 import Event

  scalars, purges = [], []
  for path in sorted((workdir / "tensorboard").iterdir()):
    data, at = path.read_bytes(), 0
    while at < len(data):
      (size,) = struct.unpack("<Q", data[at : at + 8])
      event = Event.FromString(data[at + 12 : at + 12 + size])
      at += size + 16  # Two checksums.
      scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
      if event.HasField("session_log"):
        purges.append(event.step)
  return scalars, purges


def window(*steps):
  """The means of steps given as (loss, gradient norm, a metric, number of skipped steps)."""
  means = WindowMeans()
  for values in steps:
    means.add(dict(zip(("loss", "grad_norm", "scale", "skipped_steps"), values)))
  return means


def on_device(*steps):
  return [tuple(jnp.float32(x) for x in values) for values in steps]


def test_window_means_are_over_finite_steps_only():
  steps = on_device((1, 2, 3, 0), (math.nan, 2, 50, 1), (5, math.inf, 50, 2), (2, 4, 8, 2))
  assert window(*steps).fetch() == {
    "loss": 1.5,
    "grad_norm": 3.0,
    "scale": 5.5,
    "skipped_steps": 2.0,
  }
  skipped = window(*steps[1:3]).fetch()
  assert skipped.pop("skipped_steps") == 2 and all(map(math.isnan, skipped.values()))


def test_mean_of_one_step_is_its_value():
  for value in (0.1, 1e-30, 3.3333333e37):
    value = float(jnp.float32(value))
    assert window(*on_device((value, 1, value, 0))).fetch()["scale"] == value


def test_metric_that_is_not_finite_in_a_finite_step_is_not_hidden():
  steps = on_device((1, 2, math.nan, 0), (3, 2, 1, 0))
  found = window(*steps).fetch()
  assert math.isnan(found["scale"]) and found["loss"] == 2


def test_adding_a_step_does_not_wait_for_its_values():
  # Tracers have no values, so reading one would raise an error.
  jax.eval_shape(lambda *steps: window(*steps)._totals, *on_device((1, 2, 3, 0), (1, 2, 3, 0)))


def test_each_log_is_a_json_object_on_one_line(tmp_path):
  with quiet(tmp_path / "new" / "folder") as report:
    report.log(12, {"train/loss": 3.5, "train/images_per_second": 10})
    report.log(20, {"retrieval/text_to_image_r1": 1.5})
  assert lines(tmp_path / "new" / "folder") == [
    {"step": 12, "train/loss": 3.5, "train/images_per_second": 10.0},
    {"step": 20, "retrieval/text_to_image_r1": 1.5},
  ]


def test_line_is_on_disk_as_soon_as_it_is_logged(tmp_path):
  report = quiet(tmp_path)
  report.log(1, {"train/loss": 3.5})
  assert lines(tmp_path) == [{"step": 1, "train/loss": 3.5}]
  report.close()


def test_nonfinite_values_are_null(tmp_path):
  with quiet(tmp_path) as report:
    report.log(1, {"train/loss": math.nan, "train/scale": math.inf, "train/a": 1})
  assert lines(tmp_path) == [{"step": 1, "train/loss": None, "train/scale": None, "train/a": 1}]


def test_resumed_run_has_the_metrics_of_an_uninterrupted_one(tmp_path):
  with quiet(tmp_path / "unbroken") as report:
    for step in range(1, 11):
      report.log(step, {"train/loss": 1 / step})
  with quiet(tmp_path / "killed") as report:
    for step in range(1, 9):
      report.log(step, {"train/loss": 1 / step})
  with (tmp_path / "killed" / "metrics.jsonl").open("a") as file:
    file.write('{"step": 4, "train/lo')  # Killed while writing a line.
  with quiet(tmp_path / "killed", start_step=6) as report:  # The last checkpoint is at step 6.
    for step in range(7, 11):
      report.log(step, {"train/loss": 1 / step})
  unbroken, killed = (tmp_path / name / "metrics.jsonl" for name in ("unbroken", "killed"))
  assert killed.read_text() == unbroken.read_text()
  assert {path.name for path in (tmp_path / "killed").iterdir()} == {"metrics.jsonl", "tensorboard"}


def test_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
  with quiet(tmp_path) as report:
    report.log(0, {"zero_shot/top1": 1})
    report.log(5, {"train/loss": 1})
  with quiet(tmp_path) as report:
    report.log(0, {"zero_shot/top1": 2})
  assert lines(tmp_path) == [{"step": 0, "zero_shot/top1": 2}]


def test_lines_without_metrics_are_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_bytes(b'[1]\n{"a": 1}\n\n3\n\xff\n{"step": 2}\n{"step": nul')
  quiet(tmp_path, start_step=2).close()
  assert lines(tmp_path) == [{"step": 2}]


def test_tensorboard_gets_every_value_and_purges_steps_that_are_rerun(tmp_path):
  with quiet(tmp_path) as report:
    report.log(3, {"train/loss": 0.5, "retrieval/image_to_text_r1": 25})
    report.log(4, {"train/loss": math.nan})
  scalars, _ = events(tmp_path)
  assert scalars[:2] == [(3, "train/loss", 0.5), (3, "retrieval/image_to_text_r1", 25)]
  assert scalars[2][:2] == (4, "train/loss") and math.isnan(scalars[2][2])
  quiet(tmp_path, start_step=3).close()
  assert events(tmp_path)[1][-1] == 4  # Step 3 stays.


@pytest.mark.parametrize("lost", [1, 30, 200, "all"])
def test_tensorboard_is_completed_from_metrics_after_a_kill(tmp_path, lost):
  with quiet(tmp_path) as report:
    for step in range(1, 11):
      report.log(step, {"train/loss": 1 / step, "train/a": step})
  (path,) = (tmp_path / "tensorboard").iterdir()
  data = path.read_bytes()
  path.write_bytes(data[:-lost] if lost != "all" else b"")  # The tail was still in memory.
  with quiet(tmp_path, start_step=9) as report:
    report.log(10, {"train/loss": 7, "train/a": 8})
  expected = {(s, n): x for s in range(1, 10) for n, x in (("loss", 1 / s), ("a", s))}
  expected |= {(10, "loss"): 7, (10, "a"): 8}
  effective = {}
  for step, name, value in effective_events(tmp_path):
    assert (step, name) not in effective  # Nothing is shown twice.
    effective[step, name.removeprefix("train/")] = pytest.approx(value)
  assert effective == expected


def effective_events(workdir):
  """(step, name, value) of the scalars that no later restart purges."""
  found = []
  for path in sorted((workdir / "tensorboard").iterdir()):
    for kind, step, name, value in records(path):
      if kind == "purge":
        found = [one for one in found if one[0] < step]
      else:
        found.append((step, name, value))
  return found


def records(path):
  """("purge", step, None, None) or ("scalar", step, name, value) for each event of a file."""
  from tensorboardX.proto.event_pb2 import Event

  data, at = path.read_bytes(), 0
  while at + 12 < len(data):
    (size,) = struct.unpack("<Q", data[at : at + 8])
    if at + size + 16 > len(data):
      return
    event = Event.FromString(data[at + 12 : at + 12 + size])
    at += size + 16
    if event.HasField("session_log"):
      yield "purge", event.step, None, None
    for value in event.summary.value:
      yield "scalar", event.step, value.tag, value.simple_value


def test_tensorboard_has_a_line_as_soon_as_it_is_logged(tmp_path):
  report = quiet(tmp_path)
  report.log(3, {"train/loss": 0.5})
  assert effective_events(tmp_path) == [(3, "train/loss", 0.5)]
  report.close()


def test_tensorboard_has_the_config_and_figures(tmp_path):
  from tensorboardX.proto.event_pb2 import Event

  png = io.BytesIO()
  Image.new("RGB", (3, 2), "red").save(png, "PNG")
  with MetricWriter(tmp_path, 100, stream=io.StringIO()) as report:
    report.log_config('{"seed": 0}')
    report.log_figure(7, "retrieval", png.getvalue(), (3, 2))
  (path,) = (tmp_path / "tensorboard").iterdir()
  data, found = path.read_bytes(), {}
  while data:
    size = int.from_bytes(data[:8], "little")
    event = Event.FromString(data[12 : 12 + size])
    found |= {value.tag: (event.step, value) for value in event.summary.value}
    data = data[size + 16 :]
  step, config = found["config/text_summary"]
  assert step == 0 and config.metadata.plugin_data.plugin_name == "text"
  assert b'{"seed": 0}' in config.tensor.string_val[0]
  step, image = found["retrieval"]
  assert step == 7 and (image.image.width, image.image.height) == (3, 2)
  assert Image.open(io.BytesIO(image.image.encoded_image_string)).getpixel((0, 0)) == (255, 0, 0)


def test_missing_tensorboardx_is_reported_and_not_fatal(tmp_path, monkeypatch):
  monkeypatch.delitem(sys.modules, "clip_jax.training.event_file", raising=False)
  monkeypatch.delattr("clip_jax.training.event_file", raising=False)
  for name in [n for n in sys.modules if n.split(".")[0] == "tensorboardX"] + ["tensorboardX"]:
    monkeypatch.setitem(sys.modules, name, None)
  stream = io.StringIO()
  with MetricWriter(tmp_path, 10, stream=stream) as report:
    report.log(1, {"train/loss": 1})
  assert "tensorboardX is missing: pip install tensorboardX" in stream.getvalue()
  assert len(lines(tmp_path)) == 1 and not (tmp_path / "tensorboard").exists()


def test_only_one_process_writes(tmp_path):
  stream = io.StringIO()
  with MetricWriter(tmp_path / "none", 10, writes=False, wandb="project", stream=stream) as report:
    report.log(1, {"train/loss": 1})
    report.note("text")
  assert stream.getvalue() == "" and not (tmp_path / "none").exists()


def test_resumed_run_continues_its_weights_and_biases_run(tmp_path, monkeypatch):
  begun, logged, finished = [], [], []

  def init(**kwargs):
    begun.append(kwargs)
    return types.SimpleNamespace(
      log=lambda values, step: logged.append((step, values)), finish=lambda: finished.append(True)
    )

  monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
  for start in 0, 1:
    with quiet(tmp_path / "run7", start_step=start, wandb="clips") as report:
      report.log(start + 1, {"train/loss": 2.0})
  assert [b["project"] for b in begun] == ["clips", "clips"]
  assert begun[0]["id"] == begun[1]["id"] and begun[0]["resume"] == "allow"
  assert begun[0]["name"] == "run7"
  assert logged == [(1, {"train/loss": 2.0}), (2, {"train/loss": 2.0})]
  assert len(finished) == 2


def test_missing_wandb_is_an_error(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"project 'clips', .* Install it \(pip install wandb\)"):
    quiet(tmp_path, wandb="clips")


def test_unwritable_workdir_is_an_error(tmp_path):
  (tmp_path / "file").write_text("in the way")
  with pytest.raises(UserError, match="workdir .*file.* cannot be written to: .*--workdir"):
    quiet(tmp_path / "file")


def test_progress_line_has_step_loss_throughput_and_time_left():
  line = progress_line(
    1200,
    5600,
    {"train/loss": 3.21449, "train/images_per_second": 1234.4, "train/data_wait_fraction": 0.0213},
    200,
  )
  assert line == (
    "step 1,200/5,600  21%  loss 3.214  images/s 1,234  data wait 2%  time left 3 min 20 s"
  )


def test_progress_line_omits_missing_values():
  assert progress_line(1, 10, {"train/loss": math.nan}, None) == "step 1/10  10%  loss nan"
  assert progress_line(10, 10, {}, 0) == "step 10/10  100%"


def test_file_gets_a_line_every_few_seconds_and_the_last_one(tmp_path):
  clock, stream = Clock(), io.StringIO()
  report = MetricWriter(tmp_path, 100, stream=stream, clock=clock, every_seconds=10)
  for step in range(4, 101, 4):
    report.log(step, {"train/loss": 1})
    clock.now += 4
  report.close()
  shown = [line.split()[1] for line in stream.getvalue().splitlines()]
  assert shown == [
    "4/100",
    "16/100",
    "28/100",
    "40/100",
    "52/100",
    "64/100",
    "76/100",
    "88/100",
    "100/100",
  ]
  assert "\r" not in stream.getvalue()
  assert len(lines(tmp_path)) == 25  # The metrics are all in the file.


def test_time_left_excludes_compilation(tmp_path):
  clock, stream = Clock(), io.StringIO()
  report = MetricWriter(tmp_path, 60, start_step=10, stream=stream, clock=clock, every_seconds=0)
  clock.now += 1000  # Compiles.
  report.log(11, {"train/loss": 1})
  clock.now += 9 * 2
  report.log(20, {"train/loss": 1})
  report.close()
  first, second = stream.getvalue().splitlines()
  assert "time left" not in first
  assert second.endswith("time left 1 min 20 s")  # 40 steps of 2 s.


def test_terminal_gets_one_line_that_is_overwritten(tmp_path, monkeypatch):
  monkeypatch.setenv("COLUMNS", "52")
  stream = Terminal()
  report = MetricWriter(tmp_path, 100, stream=stream)
  report.log(1, {"train/loss": 1.0, "train/images_per_second": 100})
  report.log(2, {"train/loss": 2.0, "train/images_per_second": 100})
  report.note("saved")
  report.close()
  report.note("done")
  assert stream.getvalue() == (
    "\r\x1b[K....................  step 1/100  1%  loss 1.000  i"
    "\r\x1b[K....................  step 2/100  2%  loss 2.000  i"
    "\r\x1b[Ksaved\n....................  step 2/100  2%  loss 2.000  i"
    "\n"
    "done\n"
  )


def test_evaluations_are_printed_on_separate_lines(tmp_path):
  stream = io.StringIO()
  with MetricWriter(tmp_path, 100, stream=stream) as report:
    report.log(50, {"test/text_to_image_r1": 12.3456, "test/examples": 5393, "flags/top1": 50})
  assert stream.getvalue() == (
    "step 50  test  text_to_image_r1 12.35  examples 5,393\nstep 50  flags  top1 50\n"
  )


def test_long_evaluations_wrap_between_metrics(tmp_path):
  stream = io.StringIO()
  with MetricWriter(tmp_path, 100, stream=stream) as report:
    report.log(50, {f"retrieval/text_to_image_r{k}": k for k in range(12)})
  shown = stream.getvalue().splitlines()
  assert len(shown) > 1 and all(len(line) <= 100 for line in shown)
  assert all(line.startswith("    text_to_image_r") for line in shown[1:])


def test_table_is_aligned():
  assert table(
    [("retrieval/r1", 12.345), ("zero_shot/examples", 5393)], ("metric", "value")
  ).splitlines() == [
    "metric              value",
    "------------------  -----",
    "retrieval/r1        12.35",
    "zero_shot/examples  5,393",
  ]
  assert table([("a", "1.5"), ("b", "n/a")], ("name", "value")).splitlines()[2:] == [
    "a     1.5",
    "b     n/a",
  ]
  assert table([], ("name", "value")) == "name  value\n----  -----"


@pytest.mark.parametrize(
  "value, text",
  [
    (0, "0"),
    (1234.4, "1,234"),
    (999.99, "1,000"),
    (22.6579, "22.66"),
    (0.0012345, "0.001234"),
    (5393, "5,393"),
    (1e-7, "1e-07"),
    (-4321, "-4,321"),
    (math.nan, "nan"),
    (math.inf, "inf"),
  ],
)
def test_numbers_have_four_digits_or_thousands_separators(value, text):
  assert number(value) == text


@pytest.mark.parametrize(
  "seconds, text",
  [
    (0, "0 s"),
    (44.6, "45 s"),
    (59.7, "1 min"),
    (200, "3 min 20 s"),
    (3600, "1 h"),
    (7500, "2 h 5 min"),
    (273600, "3 d 4 h"),
  ],
)
def test_durations_have_their_two_largest_units(seconds, text):
  assert duration(seconds) == text


def test_evaluators_with_the_same_metrics_share_a_table():
  text = evaluations(
    {"val/r1": 1.0, "val/r5": 5.5, "test/r1": 2.0, "test/r5": 7.0, "zero/top1": 22.66}
  )
  assert [line.split() for line in text.splitlines()] == [
    ["val", "test"],
    ["--", "---", "----"],
    ["r1", "1", "2"],
    ["r5", "5.5", "7"],
    [],
    ["zero"],
    ["----", "-----"],
    ["top1", "22.66"],
  ]


def test_curves_returns_what_was_logged(tmp_path):
  with quiet(tmp_path) as report:
    report.log(1, {"train/loss": 3.5})
    report.log(2, {"train/loss": math.inf, "val/r10": 4.0})
  with (tmp_path / "metrics.jsonl").open("a") as file:
    file.write('{"step": 3, "train/l')  # A line that is still being written.
  found = read_metrics(tmp_path)
  assert found["val/r10"] == ([2], [4.0])
  steps, values = found["train/loss"]
  assert steps == [1, 2] and values[0] == 3.5 and math.isnan(values[1]) and len(found) == 2
  with pytest.raises(UserError, match="There is no .*nothing/metrics.jsonl"):
    read_metrics(tmp_path / "nothing")
