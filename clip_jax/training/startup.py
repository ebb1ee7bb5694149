"""Checks and the printed summary at the start of a run."""

import os
from pathlib import Path

from flax import nnx
import jax

from clip_jax import config as config_lib
from clip_jax.cli.formatting import number
from clip_jax.cli.local_paths import local_path
from clip_jax.costs.flops import count_parameters
from clip_jax.data.selection import selection_chain
from clip_jax.errors import UserError
from clip_jax.files import check_writable
from clip_jax.nn.processor import processor_dtype
from clip_jax.parallel.agreement import data_version
from clip_jax.training.setup import TrainSetup


def writable_folder(workdir: Path) -> Path:
  """Creates `workdir` if missing, and returns its absolute path.

  Raises:
    UserError: `workdir` is not writable, or a URL.
  """
  workdir = local_path(workdir, "--workdir")
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    check_writable(workdir / "config.json")
  except OSError as e:
    raise UserError(
      f"Cannot write to --workdir={workdir}: {e.strerror}. Choose a folder that you may write to."
    ) from e
  return workdir.absolute()


def precision(setup: TrainSetup) -> list[str]:
  """Returns lines about the towers' compute dtypes: why, and a hint if a CPU could be faster."""
  of = setup.dtypes
  same = of["image"] == of["text"]
  line = f"computes   in {of['image']}" + ("" if same else f" (image) and {of['text']} (text)")
  if jax.default_backend() != "cpu":
    return [line]
  asked = {name: getattr(setup.config.model[name], "dtype", None) for name in of}
  fastest, reason = processor_dtype()
  if "auto" in asked.values():
    line += f', by dtype="auto": {reason}'
  flags = [
    f"--config.model.{name}.dtype=auto"
    for name, dtype in of.items()
    if dtype == "bfloat16" != fastest and asked[name] != "auto"
  ]
  hint = "           bfloat16 is slower than float32 on this processor (docs/speed.md): "
  return [line, *([hint + " ".join(flags)] if flags else [])]


def huge_pages(setting: Path = Path("/sys/kernel/mm/transparent_hugepage/enabled")) -> list[str]:
  """Returns a hint to enable huge pages, if this is a CPU and Linux grants them on request.

  A step allocates and frees gigabytes, in pages of 4 KiB by default.

  Args:
    setting: file with the kernel's setting.
  """
  asks = setting.exists() and "[madvise]" in setting.read_text()
  asked = "hugetlb" in os.environ.get("GLIBC_TUNABLES", "")
  if jax.default_backend() != "cpu" or not asks or asked:
    return []
  return [
    "           20% faster with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 before the command "
    "(docs/speed.md)"
  ]


def summary(setup: TrainSetup, workdir: Path, start: int) -> list[str]:
  """Returns the lines that describe the run, printed before it starts."""
  data, config, model = setup.data, setup.config, setup.learner.model
  samples = setup.history.samples(setup.total_steps)
  selections = [one.describe() for one in selection_chain(data.source) if hasattr(one, "describe")]
  compute = setup.compute
  devices = jax.devices()
  return [
    f"data       {len(data.source):,} records, each seen {number(samples / len(data.source))} "
    f"times: {samples:,} samples",
    *(f"           {line}" for line in selections),
    f"model      {count_parameters(setup.state.params) / 1e6:.1f} M parameters: image "
    f"{count_parameters(nnx.state(model.image)) / 1e6:.1f} M, text "
    f"{count_parameters(nnx.state(model.text)) / 1e6:.1f} M"
    + (f"; trained {compute.trained_parameters / 1e6:.1f} M" if setup.frozen else ""),
    *(
      [f"           from {setup.training.init_from}"]
      if setup.training.init_from and not start
      else []
    ),
    f"objective  {config_lib.short_name(config.objective.fn)} on batches of {data.batch_size}",
    f"compute    {number(compute.forward / 1e9)} G multiply-adds per example, forward (image "
    f"{number(compute.image / 1e9)}, text {number(compute.text / 1e9)}, loss "
    f"{number(compute.loss / 1e9)}), {compute.flops * samples:.1e} FLOP in total",
    f"devices    {len(devices)} x {devices[0].device_kind}, mesh "
    + " x ".join(f"{name}={n}" for name, n in setup.mesh.shape.items()),
    *precision(setup),
    *huge_pages(),
    f"steps      {setup.total_steps:,}" + (f", from step {start:,} on" if start else ""),
    f"workdir    {workdir}",
  ]


def agreement_facts(setup: TrainSetup) -> dict[str, str | dict[str, str]]:
  """Returns the facts that must agree on all processes."""
  kinds = {device.device_kind for device in jax.local_devices()}
  return {
    "config": config_lib.entries(setup.config),
    "data": data_version(setup.data.source),
    "dtypes": setup.dtypes,
    "devices": f"{jax.local_device_count()} x {', '.join(sorted(kinds))}",
  }
