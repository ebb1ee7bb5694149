"""Formats estimates for display."""

from collections.abc import Sequence

from clip_jax.cli.formatting import duration, number, table
from clip_jax.planning.collectives import totals_by_kind
from clip_jax.planning.estimate import Estimate

_MISSING = "-"


def describe_plan(plan: Estimate) -> str:
  """Formats one estimate, one line per quantity."""
  topology, roof = plan.topology, plan.roofline
  some = plan.trained_parameters < plan.parameters
  trained = f", {plan.trained_parameters / 1e6:.1f} M of them trained" if some else ""
  rows = [
    (
      "chips",
      f"{topology.devices} x {topology.chip.device_kind} in {topology.hosts} hosts, mesh "
      + " x ".join(f"{axis}={n}" for axis, n in plan.mesh.items()),
    ),
    ("fits", format_fit(plan)),
    (
      "memory per chip",
      f"arguments {gigabytes(plan.arguments)}, temporaries "
      f"{gigabytes(plan.temporaries)}, peak {gigabytes(plan.peak)}",
    ),
    ("model", f"{plan.parameters / 1e6:.1f} M parameters{trained}, batch {plan.batch_size:,}"),
    ("FLOPs per step", f"{plan.model_flops:.3g} of the model, {plan.flops:.3g} executed"),
    ("memory traffic", f"{gigabytes(plan.traffic)} per chip and step"),
    *_collective_rows(plan),
    (
      "seconds per step",
      ", ".join(f"{part} {number(value)}" for part, value in roof.known.items()),
    ),
    (
      "bottleneck",
      f"{roof.bottleneck}: {number(roof.best)} s per step at best"
      + (f", {number(roof.worst)} s if nothing overlaps" if roof.memory is not None else ""),
    ),
    (
      "model FLOPs utilisation",
      f"at most {plan.utilisation(roof.best):.1%}"
      + (
        f", {plan.utilisation(roof.worst):.1%} if nothing overlaps"
        if roof.memory is not None
        else ""
      ),
    ),
    *(
      [
        (
          "compiler's estimate",
          f"{1e3 * plan.compiler_seconds:,.0f} ms, {plan.utilisation(plan.compiler_seconds):.1%} "
          "MFU, without time spent waiting",
        )
      ]
      if plan.compiler_seconds
      else []
    ),
    ("throughput", f"at most {plan.examples_per_second:,.0f} examples/s"),
    (
      "input per host",
      f"{plan.examples_per_second / topology.hosts:,.0f} examples/s to keep up "
      f"with that, from its {topology.chip.cores_per_host} virtual CPUs",
    ),
    ("whole run", format_run(plan)),
    *([("compiled in", duration(plan.compile_seconds))] if plan.compile_seconds else []),
  ]
  width = max(len(name) for name, _ in rows)
  return "\n".join(
    [
      *(f"{name.ljust(width)}  {value}" for name, value in rows),
      *(f"note: {note}" for note in plan.notes),
    ]
  )


def _collective_rows(plan):
  if plan.collectives is None:
    return [("collectives", _MISSING)]
  kinds = totals_by_kind(plan.collectives)
  rows = [
    (
      "collectives",
      "; ".join(f"{kind} {row['count']}x {gigabytes(row['bytes'])}" for kind, row in kinds.items())
      or "none",
    )
  ]
  for one in plan.collectives[:3]:
    rows.append(
      (
        "",
        f"{one.kind} of {one.shape} among {len(one.group)}, {one.times}x: "
        f"{gigabytes(one.wire_bytes)} {one.origin.rpartition('(train_step)/')[2]}",
      )
    )
  return rows


def format_fit(plan: Estimate) -> str:
  """Formats whether a step fits in memory."""
  if plan.fits is None:
    return (
      f"unknown; the arguments alone take {gigabytes(plan.arguments)} of {gigabytes(plan.limit)}"
    )
  word = "yes" if plan.fits else "no"
  return f"{word}: {gigabytes(plan.peak)} of {gigabytes(plan.limit)} per chip"


def format_run(plan: Estimate) -> str:
  """Formats the duration of the whole run and its chip-hours."""
  if plan.total_steps is None:
    return _MISSING
  roof = plan.roofline
  hours = [plan.total_steps * seconds / 3600 for seconds in (roof.best, roof.worst)]
  chips = [plan.topology.devices * h for h in hours]
  text = (
    f"{plan.total_steps:,} steps: {duration(3600 * hours[0])} ({number(hours[0] / 24)} days)"
    f" and {chips[0]:,.0f} chip-hours at best"
  )
  if roof.memory is None:
    return text
  return text + f"; {duration(3600 * hours[1])} and {chips[1]:,.0f} if nothing overlaps"


def compare_plans(plans: Sequence[tuple[str, Estimate]], what: str) -> str:
  """Formats several estimates as a table, one row each.

  Args:
    plans: (name, estimate) pairs.
    what: header of the column of names.
  """
  return table(
    [(name, *_row(plan)) for name, plan in plans],
    header=(
      what,
      "fits",
      "peak GB",
      "ms at best",
      "no overlap",
      "bound by",
      "MFU <=",
      "examples/s",
      "chip-hours",
    ),
  )


def _row(plan):
  roof = plan.roofline
  hours = (
    ""
    if plan.total_steps is None
    else f"{plan.total_steps * roof.best / 3600 * plan.topology.devices:,.0f}"
  )
  if plan.fits is False:  # Nothing was compiled, so there is no step to time.
    return ("no", f"{plan.peak / 1e9:.1f}", "", "", "", "", "", "")
  return (
    {True: "yes", None: "?"}[plan.fits],
    f"{plan.peak / 1e9:.1f}" if plan.peak else "",
    f"{1e3 * roof.best:,.0f}",
    f"{1e3 * roof.worst:,.0f}" if plan.fits else "",
    roof.bottleneck,
    f"{plan.utilisation(roof.best):.1%}",
    f"{plan.examples_per_second:,.0f}",
    hours,
  )


def gigabytes(size: float | None) -> str:
  """Formats bytes as in 1.23 GB; a dash for an unknown size."""
  return _MISSING if size is None else f"{number(size / 1e9)} GB"
