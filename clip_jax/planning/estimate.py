"""What a step of a config takes on a topology: memory, products, talk, time, and all of a run."""

import dataclasses
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh
from ml_collections.config_dict import ConfigDict
import numpy as np

from clip_jax import sharding
from clip_jax.config import build, call
from clip_jax.errors import UserError
from clip_jax.flops import multiply_adds, parameters
from clip_jax.parts import explanation, prepare
from clip_jax.planning import compile as compile_lib, roofline
from clip_jax.planning.chips import PREALLOCATED, Topology
from clip_jax.planning.collectives import Collective, by_kind, collectives
from clip_jax.planning.hlo import core_cycles, main_memory_traffic

# Images a second that one virtual CPU decodes from JPEG and crops to 224 px, both antialiased, as
# `bench data` finds for pictures of 640 x 480.
IMAGES_PER_CORE = 200.0


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A config on a topology.

  Attributes:
    topology, mesh: what is planned for; sizes of the mesh by axis.
    fits: whether there is room; None where nothing could be compiled.
    arguments: bytes a chip of the train state and a batch.
    temporaries, peak: bytes a chip; of a step that does not fit, what it needs is the peak.
    limit: bytes a chip that programs can have.
    batch_size, total_steps: of the run; no steps where the data that says them is not here.
    parameters: of the model and the objective.
    model_flops: FLOPs of a step, 6 for each multiply-add of the forward pass.
    flops: those done, with what is rematerialised.
    traffic: bytes a chip moves to and from its memory.
    found: the collectives.
    roofline: seconds of each part.
    compiler_seconds: that a step keeps a TPU's core busy by the compiler's own estimate. It is no
      bound, and can be above the roofline's `worst`, which knows of no elementwise work. None for
      GPUs, and where nothing was compiled.
    compile_seconds: that compiling took.
    notes: what is missing or assumed, for a person.
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
  model_flops: float
  flops: float
  traffic: float | None
  found: list[Collective] | None
  roofline: roofline.Roofline
  compiler_seconds: float | None
  compile_seconds: float | None
  notes: tuple[str, ...]

  @property
  def examples_per_second(self) -> float:
    """At most."""
    return self.batch_size / self.roofline.best

  def utilisation(self, seconds: float) -> float:
    """Share of the chips' peak that the model's own FLOPs are, at so many seconds a step."""
    return self.model_flops / (seconds * self.topology.devices * self.topology.chip.flops)


def estimate(config: ConfigDict, topology: Topology, *,
             images_per_core: float = IMAGES_PER_CORE) -> Estimate:
  """Plans a config for a topology; compiles its step where that can be done here.

  Raises:
    UserError: the config does not fit the topology's number of chips, or there is no such slice.
  """
  config, notes, knows_length = without_data(config)
  chip = topology.chip
  parts, made, within, missing = _prepared(config, topology)
  notes += missing
  fits = None if made is None else isinstance(made, compile_lib.Compiled)
  program = made.program if fits else None
  found = collectives(program, topology.devices) if fits else None
  traffic = main_memory_traffic(program) if fits else None
  cycles = core_cycles(program) if fits and chip.clock else None
  if made and not topology.is_tpu:
    notes += _of_gpus(made, topology)
  with within:
    done, weighted = (2 * multiply_adds(parts.train_step, parts.state, parts.batch, exact=exact)
                      for exact in (1, chip.exact))
  return Estimate(
      topology=topology, mesh=dict(parts.mesh.shape), fits=fits,
      arguments=compile_lib.bytes_a_device((parts.state, parts.batch)),
      temporaries=made.temporaries if fits else None,
      peak=None if made is None else made.peak if fits else made.needed,
      limit=made.there if fits is False else chip.room,
      batch_size=parts.data.batch_size, total_steps=parts.total_steps if knows_length else None,
      parameters=parameters(parts.state.params),
      model_flops=parts.data.batch_size * parts.compute.flops, flops=done, traffic=traffic,
      found=found,
      roofline=roofline.Roofline(
          compute=roofline.compute_seconds(weighted, topology),
          memory=traffic / chip.bandwidth if fits else None,
          interconnect=roofline.interconnect_seconds(
              found, _places(parts.mesh, topology), topology) if fits else None,
          input=roofline.input_seconds(parts.data.batch_size, topology, images_per_core)),
      compiler_seconds=cycles / chip.clock if cycles else None,
      compile_seconds=made.seconds if made else None, notes=notes)


def _prepared(config, topology):
  """The parts of a run; its step, if that was compiled; a context with their mesh; notes."""
  failed = None
  if compile_lib.can_compile(topology):
    try:
      parts = prepare(config, mesh=_mesh(config, compile_lib.devices(topology)))
      return parts, compile_lib.compiled(parts, topology), jax.set_mesh(parts.mesh), ()
    except UserError:
      raise
    except Exception as e:  # JAX does not promise that it compiles for GPUs which are not there.
      if topology.is_tpu:
        raise
      failed = e
  mesh = _abstract_mesh(config, topology)
  return (prepare(config, mesh=mesh), None, jax.sharding.use_abstract_mesh(mesh),
          (_what_is_missing(topology, failed),))


class NoData:
  """Stands in for records that are not on this machine: as many as one likes, all grey."""

  def __init__(self, texts: int):
    self.texts = texts

  def __len__(self) -> int:
    return 10**12

  def __getitem__(self, i: int) -> dict[str, Any]:
    return {"image": np.full((64, 64, 3), 128, np.uint8), "text": ["a"] * self.texts}


def without_data(config: ConfigDict) -> tuple[ConfigDict, tuple[str, ...], bool]:
  """The config with nothing in it that asks for files which are not here.

  Returns:
    The config; notes on what was left out; whether the length of the run is known all the same.
  """
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.evaluators, config.final_evaluators = {}, {}
    try:
      build(config.data)
      return config, (), True
    except (UserError, OSError, ImportError) as e:
      captions = config.data.views.captions
      config.data.source = call(NoData, texts=1 if isinstance(captions, str) else len(captions))
      note = f"The data is not here ({str(e).splitlines()[0]}), so it was planned without."
      if config.train.epochs is None:
        return config, (note,), True
      config.train.epochs, config.train.steps = None, 10**9  # Longer than any warm-up.
      return config, (note, "How long the run is, its epochs say only with the data at hand; "
                            "set --config.train.samples to know."), False


def explained(config: ConfigDict, topology: Topology) -> str:
  """Where each array of the train state lies on the topology; compiles nothing."""
  return explanation(prepare(without_data(config)[0], mesh=_abstract_mesh(config, topology)))


def _mesh(config, devices):
  return sharding.make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor,
                            slices=config.mesh.slices, devices=devices)


def _abstract_mesh(config, topology):
  sizes = sharding.mesh_sizes(config.mesh.data, config.mesh.fsdp, config.mesh.tensor,
                              devices=topology.devices)
  kind = AbstractDevice(device_kind=topology.chip.kind, num_cores=None,
                        platform="tpu" if topology.is_tpu else "gpu")
  return AbstractMesh(sizes, sharding.AXES, abstract_device=kind,
                      axis_types=(jax.sharding.AxisType.Auto,) * len(sizes))


def _places(mesh, topology):
  """Where each device of the mesh lies: its slice or host, then its coordinates."""
  if not topology.is_tpu:
    return [topology.place(d.id) for d in mesh.devices.flat]
  return [(getattr(d, "slice_index", None) or 0, *d.coords[:topology.chip.dimensions])
          for d in mesh.devices.flat]


def _what_is_missing(topology, failed=None):
  compiler, extra = ("libtpu", "tpu") if topology.is_tpu else ("JAX's CUDA plugin", "cuda")
  why = (f"the compiler failed ({compile_lib.first_line(failed)})" if failed else
         f"{compiler} is not installed (pip install 'scaling-clip-jax[{extra}]')")
  return (f"Nothing was compiled, for {why}. Missing: temporaries and peak, whether it fits, "
          "memory traffic, collectives; the time is of the products and the input alone.")


def _of_gpus(made, topology):
  """What to bear in mind of a step that was compiled without a GPU."""
  notes = ("No GPU was there to try programs out on, so products are cuBLAS's, with none of "
           "Triton's, and the program that GPUs will run differs: memory traffic, and the time "
           "that hangs on it, are approximate.",)
  limit = (f"The limit is what JAX takes if not told otherwise, {PREALLOCATED:.0%} of a GPU's "
           f"{topology.chip.memory / 1e9:.1f} GB")
  if isinstance(made, compile_lib.TooLarge) and made.needed < _MOST * topology.chip.memory:
    limit += f"; with XLA_CLIENT_MEM_FRACTION={_MOST} this step may have room"
  return (*notes, limit + ".")


# Of a GPU's memory, for arrays: CUDA, its libraries and NCCL need some gigabytes too.
_MOST = 0.9


def as_json(plan: Estimate) -> dict[str, Any]:
  """All numbers of an estimate, by name."""
  roof = plan.roofline
  return {
      "topology": str(plan.topology), "chips": plan.topology.devices,
      "hosts": plan.topology.hosts, "mesh": plan.mesh, "fits": plan.fits,
      "bytes_per_chip": {"arguments": plan.arguments, "temporaries": plan.temporaries,
                         "peak": plan.peak, "limit": plan.limit},
      "batch_size": plan.batch_size, "parameters": plan.parameters,
      "model_flops_per_step": plan.model_flops, "flops_per_step": plan.flops,
      "memory_traffic_bytes_per_chip": plan.traffic,
      "collectives": None if plan.found is None else by_kind(plan.found),
      "largest_collectives": None if plan.found is None else [
          dataclasses.asdict(one) | {"group": len(one.group), "wire_bytes": one.wire_bytes}
          for one in plan.found[:20]],
      "seconds": dataclasses.asdict(roof) | {
          "best": roof.best, "worst": roof.worst, "compiler": plan.compiler_seconds},
      "binds": roof.binds,
      "model_flops_utilisation": {"at_most": plan.utilisation(roof.best),
                                  "without_overlap": plan.utilisation(roof.worst),
                                  "compiler": plan.utilisation(plan.compiler_seconds)
                                              if plan.compiler_seconds else None},
      "examples_per_second": plan.examples_per_second,
      "examples_per_second_and_host": plan.examples_per_second / plan.topology.hosts,
      "total_steps": plan.total_steps,
      "run_seconds": None if plan.total_steps is None else {
          "best": plan.total_steps * roof.best, "worst": plan.total_steps * roof.worst},
      "compile_seconds": plan.compile_seconds, "notes": list(plan.notes),
  }
