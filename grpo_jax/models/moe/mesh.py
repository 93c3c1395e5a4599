"""Expert parallelism: every device of a mesh axis holds some of the experts.

Tokens are split over all axes. The devices of the expert axis gather each other's tokens, each
computes the part of the mixture that its own experts owe, and the parts are summed where the
tokens came from. No token is dropped and every shape is static, whatever the routing. Where P
devices share E experts, a device receives (P - 1) / P of its group's tokens; an all-to-all would
move k / P of them, in shapes that depend on the routing. By `ragged` a device computes its own
experts' rows alone, so work falls with P. By `blocks` it computes k rows for every token and by
`dense` E / P: there memory falls with P, and work only where E / P < k.
"""

import jax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from grpo_jax.errors import UserError
from grpo_jax.models.moe import dispatch as moe_dispatch


def run(
  where: NamedSharding | None,
  params: moe_dispatch.Experts,
  u: Float[Array, "N d"],
  expert: Int[Array, "N k"],
  weight: Float[Array, "N k"],
  act: moe_dispatch.Act,
  way: str | None = None,
) -> Float[Array, "N o"]:
  """`moe_dispatch.run` with the experts split as `where` says: NamedSharding(mesh, P(axis)).

  None: all experts everywhere. N that the devices do not divide is computed by all of them, each
  for its own experts. Raises UserError if the axis does not divide the number of experts.
  """
  if where is None:
    return moe_dispatch.run(params, u, expert, weight, act, way)
  mesh, axis = where.mesh, where.spec[0]
  count, devices = params["up"].shape[0], mesh.shape[axis]
  if count % devices:
    raise UserError(
      f"experts={count}: must be a multiple of mesh.{axis}={devices}, or not be split"
    )
  own = count // devices
  if way is None and expert.shape[1] >= own:
    way = "dense"
  divided = u.shape[0] % mesh.size == 0

  def part(params, u, expert, weight):
    if divided:
      u, expert, weight = (
        jax.lax.all_gather(x, axis, axis=0, tiled=True) for x in (u, expert, weight)
      )
    local = expert - jax.lax.axis_index(axis) * own
    y = moe_dispatch.run(params, u, local, weight, act, way)
    if divided:
      return jax.lax.psum_scatter(y, axis, scatter_dimension=0, tiled=True)
    return jax.lax.psum(y, axis)

  others = tuple(name for name in mesh.axis_names if name != axis)
  rows = P((*others, axis)) if divided else P()
  specs = ({name: P(axis) for name in params}, rows, rows, rows)
  return jax.shard_map(part, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=False)(
    params, u, expert, weight
  )
