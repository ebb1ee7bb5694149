"""The `plan` command: without a compiler, with a fake one, without enough memory, and errors."""

import dataclasses
import json
import os
from pathlib import Path
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from clip_jax import plan
from clip_jax.config import build, call
from clip_jax.costs.flops import count_parameters
from clip_jax.costs.hlo import Program
from clip_jax.data.sources.folder import Folder
from clip_jax.errors import UserError
from clip_jax.planning import compilation, estimate as estimate_lib
from clip_jax.planning.chips import parse_topology
from clip_jax.planning.estimate import estimate, with_placeholder_data
from clip_jax.planning.roofline import Roofline
from clip_jax.training.setup import build_setup
from run_config import get_config

CONFIG = f"{Path(__file__).parent}/run_config.py"


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
  """Hides installed compilers, and restores the environment afterwards."""
  monkeypatch.setenv("JAX_PLATFORMS", os.environ["JAX_PLATFORMS"])
  monkeypatch.setattr(compilation, "can_compile", lambda topology: False)


def run(*arguments, monkeypatch):
  arguments = [f"--config={CONFIG}", *arguments]
  monkeypatch.setattr(sys, "argv", ["plan", *arguments])
  return plan.main(arguments)


def test_plan_without_a_compiler_names_what_is_missing(monkeypatch, tmp_path, capsys):
  assert run("--topology=h100:8", f"--json={tmp_path}/n", monkeypatch=monkeypatch) == 0
  printed, numbers = capsys.readouterr().out, json.loads((tmp_path / "n").read_text())
  assert "8 x H100 80GB in 1 hosts, mesh data=8 x fsdp=1 x tensor=1" in printed
  assert "JAX's CUDA plugin is not installed (pip install 'scaling-clip-jax[cuda]')" in printed
  assert "Missing: temporaries and peak, whether it fits" in printed
  assert numbers["fits"] is None and numbers["collectives"] is None
  assert numbers["bytes_per_chip"]["temporaries"] is None
  setup = build_setup(get_config())
  assert numbers["parameters"] == count_parameters(setup.state.params)
  assert numbers["total_steps"] == 30 and numbers["batch_size"] == 32
  assert numbers["examples_per_second"] == pytest.approx(32 / numbers["seconds"]["best"])
  assert numbers["run_seconds"]["best"] == pytest.approx(30 * numbers["seconds"]["best"])
  assert numbers["bottleneck"] == "input"
  assert numbers["seconds"]["input"] == pytest.approx(32 / (208 * 200))


@pytest.mark.parametrize("chips", ["h100:8", "v5e:2x2"])
def test_auto_dtype_follows_the_planned_chips(chips):
  config = get_config()
  config.model.image.dtype = "auto"
  assert build_setup(config).dtypes == {"image": "float32", "text": "float32"}
  planned = build_setup(config, mesh=estimate_lib._abstract_mesh(config, parse_topology(chips)))
  assert planned.dtypes == {"image": "bfloat16", "text": "float32"}
  assert planned.learner.model.image.dtype == "bfloat16"


def test_all_tpus_are_compared_in_a_table(monkeypatch, capsys):
  assert run("--topology=all", "--config.data.batch_size=64", monkeypatch=monkeypatch) == 0
  printed = capsys.readouterr().out
  for name in ("v4:4x4x4", "v5e:8x8", "v5p:4x4x4", "v6e:8x8"):
    assert len([line for line in printed.splitlines() if line.startswith(name)]) == 1
  assert printed.count("libtpu is not installed") == 1


def test_explain_prints_shardings_of_a_pod(monkeypatch, capsys):
  assert (
    run(
      "--topology=v5e:4x4",
      "--explain",
      "--config.mesh.tensor=2",
      "--config.mesh.fsdp=4",
      monkeypatch=monkeypatch,
    )
    == 0
  )
  printed = capsys.readouterr().out
  (line,) = [
    line
    for line in printed.splitlines()
    if line.startswith("params/model/image/stack/blocks/mlp/up/kernel")
  ]
  assert "128 / tensor 2" in line and "on mesh data=2 x fsdp=4 x tensor=2" in printed


def test_faster_cores_need_less_time_for_the_input(monkeypatch, capsys):
  assert run("--topology=v5e:2x2", "--images_per_core=1000", monkeypatch=monkeypatch) == 0
  assert f"input {32 / (112 * 1000):.4g}" in capsys.readouterr().out


@pytest.mark.parametrize(
  "arguments, message",
  [
    ((), "Set --topology=CHIP:SIDES"),
    (("--topology=v5e",), "v5e is not CHIP:SIDES"),
    (("--topology=v7:4x4",), "no chip 'v7'"),
    (
      ("--topology=v5e:16x16",),
      "batch_size 32 is not divisible by 256 devices; nearest that are: 256",
    ),
    (("--topology=v5e:4x4", "--config.mesh.fsdp=3"), "does not match the number of devices, 16"),
    (
      (
        "--topology=v5e:2x2",
        "--config.mesh.tensor=4",
        "--config.model.image.num_heads=1",
        "--config.model.text.num_heads=1",
        "--config.model.image.mlp_dim=2",
        "--config.model.text.mlp_dim=2",
        "--config.model.text.width=2",
        "--config.model.image.width=32",
      ),
      "tensor=4 divides no axis",
    ),
    (
      ("--topology=v5e:2x2", "--images_per_core=many"),
      "images_per_core=many is not a number above 0",
    ),
    (("--topology=v5e:2x2", "--images_per_core=-1"), "is not a number above 0"),
    (("--topologie=v5e:2x2",), "Did you mean --topology"),
  ],
)
def test_user_errors_say_what_to_set(arguments, message, monkeypatch):
  with pytest.raises(UserError, match=message):
    run(*arguments, monkeypatch=monkeypatch)


def test_missing_data_is_replaced_by_placeholders():
  config = get_config()
  config.unlock()
  config.data.source = call(Folder, path="/nowhere")
  changed, notes, knows = with_placeholder_data(config)
  assert knows and "The data is not here" in notes[0]
  data = build(changed.data)
  assert set(data.views(data.source[5], np.random.default_rng(0))) == {"image", "tokens"}
  config.train.steps, config.train.epochs = None, 2.0
  result = estimate(config, parse_topology("v5e:2x2"))
  assert result.batch_size == 32 and result.total_steps is None
  assert "set --config.train.samples" in result.notes[1]
  assert config.data.source.path == "/nowhere"


PROGRAM = Program("""ENTRY %main (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  %n = f32[8]{0} negate(%p), backend_config={"window_config":{"estimated_cycles":"3000000"}}
  ROOT %r = f32[8]{0} all-reduce(%n), channel_id=1, replica_groups={}
}
""")


@pytest.fixture
def compiler(monkeypatch):
  """A fake compiler that returns the same program for every step."""
  monkeypatch.setattr(compilation, "can_compile", lambda topology: True)
  monkeypatch.setattr(
    compilation, "topology_devices", lambda topology: jax.devices()[: topology.devices]
  )
  monkeypatch.setattr(
    compilation,
    "compile_step",
    lambda parts, topology: compilation.Compiled(
      arguments=10**9, temporaries=10**9, peak=2 * 10**9, program=PROGRAM, seconds=1.0
    ),
  )
  monkeypatch.setattr(
    estimate_lib,
    "_locations",
    lambda mesh, topology: [topology.location(i) for i in range(topology.devices)],
  )


def test_compilers_estimate_is_printed_with_the_roofline(compiler, monkeypatch, tmp_path, capsys):
  """3,000,000 cycles at 1.5 GHz."""
  assert run("--topology=v5e:2x4", f"--json={tmp_path}/n", monkeypatch=monkeypatch) == 0
  printed, numbers = capsys.readouterr().out, json.loads((tmp_path / "n").read_text())
  share = numbers["model_flops_per_step"] / (0.002 * 8 * 197e12)
  (line,) = [line for line in printed.splitlines() if line.startswith("compiler's estimate")]
  assert line.split(maxsplit=2)[2] == f"2 ms, {share:.1%} MFU, without time spent waiting"
  assert numbers["seconds"]["compiler"] == pytest.approx(0.002)
  assert numbers["model_flops_utilisation"]["compiler"] == pytest.approx(share)
  assert "Nothing was compiled" not in printed and "cuBLAS" not in printed


def test_gpu_plan_notes_that_it_was_compiled_without_a_gpu(compiler, monkeypatch, tmp_path, capsys):
  assert run("--topology=h100:8", f"--json={tmp_path}/n", monkeypatch=monkeypatch) == 0
  printed, numbers = capsys.readouterr().out, json.loads((tmp_path / "n").read_text())
  assert "yes: 2 GB of 63.71 GB per chip" in printed
  assert "cuBLAS" in printed and "75% of a GPU's 84.9 GB." in printed
  assert "compiler's estimate" not in printed and numbers["seconds"]["compiler"] is None
  assert numbers["collectives"] == {"all-reduce": {"count": 1, "bytes": 2 * 7 / 8 * 32}}
  assert numbers["seconds"]["interconnect"] == pytest.approx(2 * 7 / 8 * 32 / 450e9)


@pytest.mark.parametrize("share, noted", [(0.8, True), (0.95, False)])
def test_step_that_fits_in_more_of_a_gpu_gets_a_note(share, noted, compiler, monkeypatch):
  gpus = parse_topology("h100:8")
  monkeypatch.setattr(
    compilation,
    "compile_step",
    lambda parts, topology: compilation.TooLarge(
      int(share * gpus.chip.memory), int(gpus.chip.usable_memory), 1.0
    ),
  )
  result = estimate(get_config(), gpus)
  assert result.fits is False and result.limit == int(gpus.chip.usable_memory)
  assert ("XLA_CLIENT_MEM_FRACTION=0.9" in result.notes[-1]) == noted


@pytest.mark.parametrize("where", ["topology_devices", "compile_step"])
def test_failing_gpu_compiler_leaves_the_analytic_part(where, compiler, monkeypatch):
  def fails(*arguments):
    raise RuntimeError("INTERNAL: no tile sizes.\nAnd much more")

  monkeypatch.setattr(compilation, where, fails)
  result = estimate(get_config(), parse_topology("h100:8"))
  assert result.fits is None and result.collectives is None and result.roofline.compute > 0
  assert "the compiler failed (INTERNAL: no tile sizes)" in result.notes[0]
  with pytest.raises(RuntimeError, match="no tile sizes"):  # libtpu must be able to compile.
    estimate(get_config(), parse_topology("v5e:2x4"))


def test_user_errors_are_raised_for_gpus_too(compiler):
  config = get_config()
  config.data.batch_size = 36
  with pytest.raises(UserError, match="batch_size 36 is not divisible by 8"):
    estimate(config, parse_topology("h100:8"))


def test_gpus_are_located_by_their_index():
  """GPUs have no coordinates, and the mesh may reorder them."""
  mesh = SimpleNamespace(devices=np.array([SimpleNamespace(id=i) for i in (0, 9, 8, 15)]))
  assert estimate_lib._locations(mesh, parse_topology("h100:16")) == [
    (0, 0),
    (1, 1),
    (1, 0),
    (1, 7),
  ]


def test_other_settings_are_tried_for_a_step_that_does_not_fit(monkeypatch, tmp_path, capsys):
  """With a fake compiler that has memory for two rows per device."""
  one = estimate(get_config(), parse_topology("v5e:2x2"))

  def with_compiler(config, topology):
    rows = config.data.batch_size // config.train.microbatches // 4
    return dataclasses.replace(
      one,
      batch_size=config.data.batch_size,
      fits=rows <= 2,
      peak=rows * 10**9,
      limit=3e9,
      traffic=1.0,
      collectives=[],
      temporaries=rows * 10**9,
      roofline=Roofline(1.0, 2.0, 0.5, 0.1),
    )

  monkeypatch.setattr(estimate_lib, "estimate", with_compiler)
  assert run("--topology=v5e:2x2", f"--json={tmp_path}/n", monkeypatch=monkeypatch) == 0
  printed = capsys.readouterr().out
  assert "no: 8 GB of 3 GB per chip" in printed and "It does not fit" in printed
  assert "\nmicrobatches: --config.train.microbatches=4\n" in printed
  assert "\nbatch: --config.data.batch_size=8\n" in printed
  assert "--config.model.text.remat=full  (does not fit either)" in printed
  tried = {one["option"]: one for one in json.loads((tmp_path / "n").read_text())["tried"]}
  assert {option: one["fits"] for option, one in tried.items()} == {
    "remat": False,
    "microbatches": True,
    "fsdp": False,
    "batch": True,
  }
  assert tried["batch"]["examples_per_second"] == 8 / 2.0
