"""Estimates the memory, compute, communication and time of a config on a topology."""

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh
from ml_collections.config_dict import ConfigDict

from clip_jax.config import build, call
from clip_jax.costs.flops import count_multiply_adds, count_parameters
from clip_jax.costs.hlo import core_cycles, main_memory_traffic
from clip_jax.errors import UserError
from clip_jax.parallel import mesh as mesh_lib
from clip_jax.planning import compilation, roofline
from clip_jax.planning.chips import PREALLOCATED, Topology
from clip_jax.planning.collectives import (
  Collective,
  collectives as step_collectives,
  totals_by_kind,
)
from clip_jax.planning.placeholder import PlaceholderSource
from clip_jax.training.setup import build_setup, jit_train_step, sharding_table

# Images per second that one virtual CPU decodes from JPEG and crops to 224 px, both antialiased, as
# measured by `bench data` on images of 640 x 480.
IMAGES_PER_CORE = 200.0


@dataclasses.dataclass(frozen=True)
class Estimate:
  """The plan of a config on a topology.

  Attributes:
    topology: the chips that are planned for.
    mesh: sizes of the mesh, by axis.
    fits: whether the step fits in memory; None if nothing could be compiled.
    arguments: bytes per chip of the train state and a batch.
    temporaries: bytes per chip that the step needs in addition; None if it does not fit.
    peak: bytes per chip in use at once; for a step that does not fit, the bytes that it needs.
    limit: bytes per chip that programs can use.
    batch_size: global batch size.
    total_steps: steps of the run; None if that depends on data that is not here.
    parameters: number of parameters of the model and the objective.
    trained_parameters: number of those that are not frozen.
    model_flops: FLOPs per step, 6 for each forward multiply-add.
    flops: FLOPs per step that are executed, including rematerialisation.
    traffic: bytes per step that each chip moves to and from its memory.
    collectives: the collectives of the step.
    roofline: seconds of each part of a step.
    compiler_seconds: time per step that a TPU's core is busy, by the compiler's own estimate. It is
      not a bound, and can exceed the roofline's `worst`, which leaves out elementwise work. None
      for GPUs, and if nothing was compiled.
    compile_seconds: compile time.
    notes: what is missing or assumed, for display.
  """

  topology: Topology
  mesh: dict[str, int]
  fits: bool | None
  arguments: int
  temporaries: int | None
  peak: int | None
  limit: float
  batch_size: int
  total_steps: int | None
  parameters: int
  trained_parameters: int
  model_flops: float
  flops: float
  traffic: float | None
  collectives: list[Collective] | None
  roofline: roofline.Roofline
  compiler_seconds: float | None
  compile_seconds: float | None
  notes: tuple[str, ...]

  @property
  def examples_per_second(self) -> float:
    """Upper bound on the examples per second."""
    return self.batch_size / self.roofline.best

  def utilisation(self, seconds: float) -> float:
    """Model FLOPs utilisation: share of the chips' peak FLOP/s, at a step time in seconds."""
    return self.model_flops / (seconds * self.topology.devices * self.topology.chip.flops)


def estimate(
  config: ConfigDict, topology: Topology, *, images_per_core: float = IMAGES_PER_CORE
) -> Estimate:
  """Plans a config for a topology, compiling its step if a compiler for it is installed.

  Args:
    config: the config of a training run.
    topology: the chips to plan for.
    images_per_core: images per second that one virtual CPU prepares.

  Raises:
    UserError: the config does not fit the number of chips, or the topology does not exist.
  """
  config, notes, known_length = with_placeholder_data(config)
  chip = topology.chip
  setup, result, mesh_context, compile_notes = _compile(config, topology)
  notes += compile_notes
  fits = None if result is None else isinstance(result, compilation.Compiled)
  program = result.program if fits else None
  found = step_collectives(program, topology.devices) if fits else None
  traffic = main_memory_traffic(program) if fits else None
  cycles = core_cycles(program) if fits and chip.clock else None
  if result and not topology.is_tpu:
    notes += _gpu_notes(result, topology)
  with mesh_context:
    executed, weighted = (
      2
      * count_multiply_adds(jit_train_step(setup), setup.state, setup.batch, float32_weight=weight)
      for weight in (1, chip.float32_cost)
    )
  return Estimate(
    topology=topology,
    mesh=dict(setup.mesh.shape),
    fits=fits,
    arguments=compilation.bytes_per_device((setup.state, setup.batch)),
    temporaries=result.temporaries if fits else None,
    peak=None if result is None else result.peak if fits else result.needed,
    limit=result.available if fits is False else chip.usable_memory,
    batch_size=setup.data.batch_size,
    total_steps=setup.total_steps if known_length else None,
    parameters=count_parameters(setup.state.params),
    trained_parameters=setup.compute.trained_parameters,
    model_flops=setup.data.batch_size * setup.compute.flops,
    flops=executed,
    traffic=traffic,
    collectives=found,
    roofline=roofline.Roofline(
      compute=roofline.compute_seconds(weighted, topology),
      memory=traffic / chip.bandwidth if fits else None,
      interconnect=roofline.interconnect_seconds(found, _locations(setup.mesh, topology), topology)
      if fits
      else None,
      input=roofline.input_seconds(setup.data.batch_size, topology, images_per_core),
    ),
    compiler_seconds=cycles / chip.clock if cycles else None,
    compile_seconds=result.seconds if result else None,
    notes=notes,
  )


def _compile(config, topology):
  """Returns the setup of a run, the compiled step or None, a context of their mesh, and notes."""
  failed = None
  if compilation.can_compile(topology):
    try:
      setup = build_setup(config, mesh=_mesh(config, compilation.topology_devices(topology)))
      return setup, compilation.compile_step(setup, topology), jax.set_mesh(setup.mesh), ()
    except UserError:
      raise
    except Exception as e:  # JAX does not promise to compile for GPUs that are not attached.
      if topology.is_tpu:
        raise
      failed = e
  mesh = _abstract_mesh(config, topology)
  return (
    build_setup(config, mesh=mesh),
    None,
    jax.sharding.use_abstract_mesh(mesh),
    (_not_compiled_note(topology, failed),),
  )


def with_placeholder_data(config: ConfigDict) -> tuple[ConfigDict, tuple[str, ...], bool]:
  """Returns the config without evaluators, and with placeholders for data that is not here.

  Returns:
    The config; notes on what was replaced; whether the length of the run is known nevertheless.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.evaluators, config.final_evaluators = {}, {}
    try:
      build(config.data)
      return config, (), True
    except (UserError, OSError, ImportError) as e:
      captions = config.data.views.captions
      config.data.source = call(
        PlaceholderSource, texts=1 if isinstance(captions, str) else len(captions)
      )
      note = f"The data is not here ({str(e).splitlines()[0]}), so placeholders stand in for it."
      if config.train.epochs is None:
        return config, (note,), True
      config.train.epochs, config.train.steps = None, 10**9  # More steps than any warm-up has.
      return (
        config,
        (
          note,
          "The length of the run is unknown, because its epochs depend on the "
          "data; set --config.train.samples to plan it.",
        ),
        False,
      )


def explain_shardings(config: ConfigDict, topology: Topology) -> str:
  """Formats the sharding of each array of the train state on a topology; compiles nothing."""
  return sharding_table(
    build_setup(with_placeholder_data(config)[0], mesh=_abstract_mesh(config, topology))
  )


def _mesh(config, devices):
  return mesh_lib.make_mesh(
    config.mesh.data,
    config.mesh.fsdp,
    config.mesh.tensor,
    slices=config.mesh.slices,
    devices=devices,
  )


def _abstract_mesh(config, topology):
  sizes = mesh_lib.mesh_sizes(
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor, devices=topology.devices
  )
  kind = AbstractDevice(
    device_kind=topology.chip.device_kind,
    num_cores=None,
    platform="tpu" if topology.is_tpu else "gpu",
  )
  return AbstractMesh(
    sizes,
    mesh_lib.AXES,
    abstract_device=kind,
    axis_types=(jax.sharding.AxisType.Auto,) * len(sizes),
  )


def _locations(mesh, topology):
  """Location of each device of the mesh: its slice or host, then its coordinates there."""
  if not topology.is_tpu:
    return [topology.location(d.id) for d in mesh.devices.flat]
  return [
    (getattr(d, "slice_index", None) or 0, *d.coords[: topology.chip.torus_dimensions])
    for d in mesh.devices.flat
  ]


def _not_compiled_note(topology, failed=None):
  compiler, extra = ("libtpu", "tpu") if topology.is_tpu else ("JAX's CUDA plugin", "cuda")
  why = (
    f"the compiler failed ({compilation.first_line(failed)})"
    if failed
    else f"{compiler} is not installed (pip install 'scaling-clip-jax[{extra}]')"
  )
  return (
    f"Nothing was compiled, because {why}. Missing: temporaries and peak, whether it fits, "
    "memory traffic, collectives; the time covers matrix products and input only."
  )


def _gpu_notes(result, topology):
  """Notes on the accuracy of a step that was compiled without a GPU."""
  notes = (
    "Compiled without a GPU to autotune on, so matrix products use cuBLAS and not Triton, "
    "and the program on real GPUs will differ: memory traffic, and the time derived from "
    "it, are approximate.",
  )
  limit = (
    f"The limit is what JAX preallocates by default, {PREALLOCATED:.0%} of a GPU's "
    f"{topology.chip.memory / 1e9:.1f} GB"
  )
  if (
    isinstance(result, compilation.TooLarge)
    and result.needed < _MAX_MEMORY_FRACTION * topology.chip.memory
  ):
    limit += f"; with XLA_CLIENT_MEM_FRACTION={_MAX_MEMORY_FRACTION} this step may fit"
  return (*notes, limit + ".")


# Largest share of a GPU's memory for arrays: CUDA, its libraries and NCCL need some gigabytes too.
_MAX_MEMORY_FRACTION = 0.9


def as_json(plan: Estimate) -> dict[str, Any]:
  """Returns all numbers of an estimate by name, ready for JSON."""
  roof = plan.roofline
  return {
    "topology": str(plan.topology),
    "chips": plan.topology.devices,
    "hosts": plan.topology.hosts,
    "mesh": plan.mesh,
    "fits": plan.fits,
    "bytes_per_chip": {
      "arguments": plan.arguments,
      "temporaries": plan.temporaries,
      "peak": plan.peak,
      "limit": plan.limit,
    },
    "batch_size": plan.batch_size,
    "parameters": plan.parameters,
    "trained_parameters": plan.trained_parameters,
    "model_flops_per_step": plan.model_flops,
    "flops_per_step": plan.flops,
    "memory_traffic_bytes_per_chip": plan.traffic,
    "collectives": None if plan.collectives is None else totals_by_kind(plan.collectives),
    "largest_collectives": None
    if plan.collectives is None
    else [
      dataclasses.asdict(one) | {"group": len(one.group), "wire_bytes": one.wire_bytes}
      for one in plan.collectives[:20]
    ],
    "seconds": dataclasses.asdict(roof)
    | {"best": roof.best, "worst": roof.worst, "compiler": plan.compiler_seconds},
    "bottleneck": roof.bottleneck,
    "model_flops_utilisation": {
      "at_most": plan.utilisation(roof.best),
      "without_overlap": plan.utilisation(roof.worst),
      "compiler": plan.utilisation(plan.compiler_seconds) if plan.compiler_seconds else None,
    },
    "examples_per_second": plan.examples_per_second,
    "examples_per_second_and_host": plan.examples_per_second / plan.topology.hosts,
    "total_steps": plan.total_steps,
    "run_seconds": None
    if plan.total_steps is None
    else {"best": plan.total_steps * roof.best, "worst": plan.total_steps * roof.worst},
    "compile_seconds": plan.compile_seconds,
    "notes": list(plan.notes),
  }
