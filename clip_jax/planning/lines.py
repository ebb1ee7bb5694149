"""Estimates as a person reads them."""

from collections.abc import Sequence

from clip_jax.planning.collectives import by_kind
from clip_jax.planning.estimate import Estimate
from clip_jax.report import duration, number, table

_MISSING = "-"


def described(plan: Estimate) -> str:
  """One estimate, a line for each thing that it says."""
  topology, roof = plan.topology, plan.roofline
  rows = [
      ("chips", f"{topology.devices} x {topology.chip.kind} in {topology.hosts} hosts, mesh "
                + " x ".join(f"{axis}={n}" for axis, n in plan.mesh.items())),
      ("fits", fits(plan)),
      ("memory a chip", f"arguments {gigabytes(plan.arguments)}, temporaries "
                        f"{gigabytes(plan.temporaries)}, peak {gigabytes(plan.peak)}"),
      ("model", f"{plan.parameters / 1e6:.1f} M parameters, batch {plan.batch_size:,}"),
      ("FLOPs a step", f"{plan.model_flops:.3g} of the model, {plan.flops:.3g} done"),
      ("memory traffic", f"{gigabytes(plan.traffic)} a chip and step"),
      *_collective_rows(plan),
      ("seconds a step",
       ", ".join(f"{part} {number(value)}" for part, value in roof.known.items())),
      ("what binds", f"{roof.binds}: {number(roof.best)} s a step at best"
                     + (f", {number(roof.worst)} s if nothing overlaps"
                        if roof.memory is not None else "")),
      ("model FLOPs utilisation", f"at most {plan.utilisation(roof.best):.1%}"
                                  + (f", {plan.utilisation(roof.worst):.1%} if nothing overlaps"
                                     if roof.memory is not None else "")),
      *([("the compiler's own estimate",
          f"{1e3 * plan.compiler_seconds:,.0f} ms, {plan.utilisation(plan.compiler_seconds):.1%} "
          "MFU, without what is waited for")] if plan.compiler_seconds else []),
      ("examples", f"{plan.examples_per_second:,.0f} a second at most"),
      ("each host must make", f"{plan.examples_per_second / topology.hosts:,.0f} examples a second "
                              f"for that, with its {topology.chip.host_cores} virtual CPUs"),
      ("the run", run(plan)),
      *([("compiled in", duration(plan.compile_seconds))] if plan.compile_seconds else []),
  ]
  width = max(len(name) for name, _ in rows)
  return "\n".join([*(f"{name.ljust(width)}  {value}" for name, value in rows),
                    *(f"note: {note}" for note in plan.notes)])


def _collective_rows(plan):
  if plan.found is None:
    return [("collectives", _MISSING)]
  kinds = by_kind(plan.found)
  rows = [("collectives", "; ".join(f"{kind} {row['count']}x {gigabytes(row['bytes'])}"
                                    for kind, row in kinds.items()) or "none")]
  for one in plan.found[:3]:
    rows.append(("", f"{one.kind} of {one.shape} among {len(one.group)}, {one.times}x: "
                     f"{gigabytes(one.wire_bytes)} {one.origin.rpartition('(train_step)/')[2]}"))
  return rows


def fits(plan: Estimate) -> str:
  """Whether a step has room."""
  if plan.fits is None:
    return f"not known; the arguments alone are {gigabytes(plan.arguments)} of " \
           f"{gigabytes(plan.limit)}"
  word = "yes" if plan.fits else "no"
  return f"{word}: {gigabytes(plan.peak)} of {gigabytes(plan.limit)} a chip"


def run(plan: Estimate) -> str:
  """How long all steps take, and how many hours of chips."""
  if plan.total_steps is None:
    return _MISSING
  roof = plan.roofline
  hours = [plan.total_steps * seconds / 3600 for seconds in (roof.best, roof.worst)]
  chips = [plan.topology.devices * h for h in hours]
  text = f"{plan.total_steps:,} steps: {duration(3600 * hours[0])} ({number(hours[0] / 24)} days)" \
         f" and {chips[0]:,.0f} chip-hours at best"
  if roof.memory is None:
    return text
  return text + f"; {duration(3600 * hours[1])} and {chips[1]:,.0f} if nothing overlaps"


def compared(plans: Sequence[tuple[str, Estimate]], what: str) -> str:
  """Several estimates, a row each.

  Args:
    plans: with the name of each.
    what: header of the names.
  """
  return table([(name, *_row(plan)) for name, plan in plans], header=(
      what, "fits", "peak GB", "ms at best", "no overlap", "binds", "MFU <=", "examples/s",
      "chip-hours"))


def _row(plan):
  roof = plan.roofline
  hours = "" if plan.total_steps is None else \
      f"{plan.total_steps * roof.best / 3600 * plan.topology.devices:,.0f}"
  if plan.fits is False:  # Nothing was compiled, so there is no step to say the time of.
    return ("no", f"{plan.peak / 1e9:.1f}", "", "", "", "", "", "")
  return ({True: "yes", None: "?"}[plan.fits], f"{plan.peak / 1e9:.1f}" if plan.peak else "",
          f"{1e3 * roof.best:,.0f}", f"{1e3 * roof.worst:,.0f}" if plan.fits else "", roof.binds,
          f"{plan.utilisation(roof.best):.1%}", f"{plan.examples_per_second:,.0f}", hours)


def gigabytes(size: float | None) -> str:
  """1.23 GB; a dash for what is not known."""
  return _MISSING if size is None else f"{number(size / 1e9)} GB"
