"""Several runs of a compiled program at once."""

import jax
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P


def over_seeds(run, devices=None):
  """many(seeds i32[S], lrs f32[S], ...) -> (states, curves), as `run` takes and gives them with a
  leading S: all runs in one program.

  The runs are split over as many of the devices as divide S. On one device they follow each other
  on the CPU, whose batched products are slow and round differently, and are vmapped elsewhere.
  """
  devices = jax.devices() if devices is None else devices

  def many(*each):
    count = each[0].shape[0]
    used = max(d for d in range(1, len(devices) + 1) if count % d == 0)
    mesh = Mesh(devices[:used], ("run",), axis_types=(AxisType.Auto,))
    one_by_one = devices[0].platform == "cpu"
    in_turn = lambda *each: jax.lax.map(lambda one: run(*one), each)
    go = in_turn if one_by_one else jax.vmap(run)
    return jax.shard_map(go, mesh=mesh, in_specs=P("run"), out_specs=P("run"), check_vma=False)(
      *each
    )

  return jax.jit(many)
