"""Rollouts that branch, in one-turn worlds, inside jit: the plan `Tree` (card 16, SPO-tree).

Depth by depth: every unfinished node of a depth writes its segment, then its cache is copied for
its children. A node's tokens are sampled once, whatever grows from it.

Nodes of a prompt are numbered depth by depth. The batch has one row a path of the deepest level;
column t of a path belongs to its node of depth t // segment_tokens. A node is trained in the first
of the paths through it and is context (mask 0) in the others, so unit d of a row is the path's node
of depth d, and exists in the row that trains it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from grpo_jax.core import trees
from grpo_jax.envs.world import PAD, STOP, Problem, Verdict, World
from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import choose, sampler
from grpo_jax.types import Batch, Rollouts, Tree

_SAMPLED = choose.Choice()


class _Live(NamedTuple):
  """The nodes that write now: first what `sampler.decode` knows. W of them a prompt."""

  step: Array  # i32[]
  token: Array  # i32[N, W]
  fed: Array  # i32[N, W]
  k: Any
  v: Any
  logits: Array  # f32[N, W, V]
  done: Array  # bool[N, W]


class _Level(NamedTuple):
  """The nodes of one depth and the paths that end in them."""

  tokens: Int[Array, "N W T"]
  logp: Float[Array, "N W T"]
  length: Int[Array, "N W"]  # of the path
  own: Int[Array, "N W"]  # of it the node's own
  entered: Bool[Array, "N W"]
  stopped: Bool[Array, "N W"]


def check(world: World, plan: Tree) -> None:
  """Raises UserError where the plan and the world do not go together."""
  if world.step is not None:
    raise UserError(f"plan Tree: world {world.name} has turns; use a world of one turn, or Flat")
  if not plan.branching or min(plan.branching) < 1 or plan.segment_tokens < 1:
    raise UserError(
      f"branching={plan.branching}, segment_tokens={plan.segment_tokens}: give numbers from 1"
    )
  if plan.segment_tokens * (len(plan.branching) - 1) >= world.answer:
    raise UserError(
      f"segment_tokens={plan.segment_tokens} with {len(plan.branching)} depths leaves the last one "
      f"nothing of the {world.answer} tokens of world {world.name}: lower one of them"
    )


def play(
  world: World,
  config: ModelConfig,
  params: Any,
  problems: Problem,
  ids: Int[Array, " N"],
  keys: Array,
  *,
  plan: Tree,
  choice: choose.Choice = _SAMPLED,
) -> tuple[Rollouts, Batch]:
  """A tree of rollouts of each problem; keys: one typed key a problem.

  Rollouts are nodes. An unfinished inner node has reward 0 and is neither correct nor truncated.
  """
  check(world, plan)
  levels = _grow(world, config, params, problems, keys, plan, choice)
  score = jax.vmap(jax.vmap(world.score, in_axes=(None, None, 0, 0)), in_axes=(0, None, 0, 0))
  last = len(levels) - 1
  each = [
    _nodes(level, score(problems, (), level.tokens, level.length), depth == last)
    for depth, level in enumerate(levels)
  ]
  joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *each)
  parent, depth = _family(plan)
  shape = (ids.shape[0], plan.nodes)
  rollouts = Rollouts(
    prompt=ids,
    parent=jnp.broadcast_to(parent[None], shape),
    depth=jnp.broadcast_to(depth[None], shape),
    **joined,
  )
  return rollouts, _to_batch(problems, levels, plan)


def reach(plan: Tree, rollouts: Rollouts) -> Float[Array, "N G"]:
  """The share of a prompt's paths that pass through a node, were all as wide as planned: the
  weights under which sums over alive nodes, or over those that end, are means over completions."""
  width = [len(x) for x in _indices(plan)]
  share = jnp.concatenate([jnp.full(w, 1 / w, jnp.float32) for w in width])
  return jnp.where(rollouts.alive, share[None], 0)


def ends(rollouts: Rollouts) -> Bool[Array, "N G"]:
  """Alive nodes from which nothing grows."""
  return rollouts.alive & ~jnp.any(trees.children(rollouts), axis=1)[:, 1:]


def _indices(plan: Tree) -> list[range]:
  """The numbers of the nodes of each depth."""
  out, first, width = [], 0, 1
  for children in plan.branching:
    width *= children
    out.append(range(first, first + width))
    first += width
  return out


def _family(plan: Tree) -> tuple[Int[Array, " G"], Int[Array, " G"]]:
  parent, depth = [], []
  above = None
  for d, nodes in enumerate(_indices(plan)):
    parent += [-1 if above is None else above[i // plan.branching[d]] for i in range(len(nodes))]
    depth += [d] * len(nodes)
    above = nodes
  return jnp.asarray(parent, jnp.int32), jnp.asarray(depth, jnp.int32)


def _grow(world, config, params, problems, keys, plan, choice) -> list[_Level]:
  n, t, width = problems.tokens.shape[0], world.answer, plan.branching[0]
  params, prefix, cache, last = sampler.open_cache(
    config, params, problems.tokens, problems.length, width, t
  )
  first = sampler.project(params, last)
  whole = jnp.zeros((n, width), jnp.int32)
  live = _Live(
    step=jnp.int32(0),
    token=whole,
    fed=whole,
    k=cache,
    v=cache,
    logits=jnp.broadcast_to(first[:, None], (n, width, first.shape[-1])),
    done=jnp.zeros((n, width), bool),
  )
  path = {
    "tokens": jnp.zeros((n, width, t), jnp.int32),
    "logp": jnp.zeros((n, width, t), jnp.float32),
    "length": whole,
  }
  levels = []
  for depth, nodes in enumerate(_indices(plan)):
    if depth:
      live, path = _branch(live, path, plan.branching[depth])
    begin = depth * plan.segment_tokens
    end = t if depth == len(plan.branching) - 1 else begin + plan.segment_tokens
    entered = ~live.done
    live, (token, logp, on) = _write(
      config, params, prefix, keys, choice, live, jnp.asarray(nodes, jnp.int32), begin, end
    )
    own = jnp.sum(on, axis=2, dtype=jnp.int32)
    path = {
      "tokens": path["tokens"].at[:, :, begin:end].set(token),
      "logp": path["logp"].at[:, :, begin:end].set(logp),
      "length": path["length"] + own,
    }
    levels.append(_Level(**path, own=own, entered=entered, stopped=live.done))
  return levels


def _write(config, params, prefix, keys, choice, live: _Live, nodes, begin: int, end: int):
  """Columns begin to end - 1 of the nodes: (live, (tokens, logp, sampled), [N, W, end - begin])."""
  n, width = live.done.shape
  draws = sampler.uniforms(keys, nodes, jnp.arange(begin, end))

  def one(live: _Live, u):
    flat = live.logits.reshape(n * width, -1)
    token, logp = sampler.choose_with_logp(flat, u.reshape(-1), choice)
    on = ~live.done
    token = jnp.where(on, token.reshape(n, width), PAD)
    wrote = token, jnp.where(on, logp.reshape(n, width), 0), on
    live = live._replace(token=token, fed=live.fed + 1, done=live.done | (token == STOP))
    x, live = sampler.decode(config, params, prefix, live)
    return live._replace(step=live.step + 1, logits=sampler.project(params, x)), wrote

  live, wrote = jax.lax.scan(one, live, jnp.moveaxis(draws, 2, 0))
  return live, tuple(jnp.moveaxis(x, 0, -1) for x in wrote)


def _branch(live: _Live, path: dict, children: int):
  """Every node as often as it has children, side by side."""
  copies = lambda x: jnp.repeat(x, children, axis=1)
  caches = lambda tree: jax.tree.map(lambda x: jnp.repeat(x, children, axis=-3), tree)
  live = live._replace(
    token=copies(live.token),
    fed=copies(live.fed),
    logits=copies(live.logits),
    done=copies(live.done),
    k=caches(live.k),
    v=caches(live.v),
  )
  return live, jax.tree.map(copies, path)


def _nodes(level: _Level, verdict: Verdict, last: bool) -> dict:
  """Fields of `Rollouts` of one depth."""
  ended = level.entered if last else level.entered & level.stopped
  parts = verdict.parts
  return {
    "reward": jnp.where(ended, verdict.reward, 0),
    "alive": level.entered,
    "correct": ended & verdict.correct,
    "truncated": ended & ~level.stopped,
    "length": level.own,
    "parts": None if parts is None else jnp.where(ended[..., None], parts, 0),
  }


def _to_batch(problems: Problem, levels: list[_Level], plan: Tree) -> Batch:
  leaf = levels[-1]
  n, paths, t = leaf.tokens.shape
  column = jnp.arange(t, dtype=jnp.int32)
  depth_of = jnp.minimum(column // plan.segment_tokens, len(levels) - 1)
  node, home = [], []
  for level, indices in zip(levels, _indices(plan), strict=True):
    below = paths // len(indices)
    path = jnp.arange(paths, dtype=jnp.int32)
    node.append(indices[0] + path // below)
    home.append((path % below == 0)[None] & jnp.repeat(level.entered, below, axis=1))
  home = jnp.stack(home, axis=2)  # bool[N, paths, D]
  owner = jnp.arange(n, dtype=jnp.int32)[:, None, None] * plan.nodes
  owner = owner + jnp.stack(node, axis=1)[None]
  trained = home[:, :, depth_of] & (column[None, None] < leaf.length[..., None])
  flat = lambda x: x.reshape(n * paths, -1)
  return Batch(
    tokens=flat(leaf.tokens),
    mask=flat(trained).astype(jnp.float32),
    unit=jnp.broadcast_to(depth_of[None], (n * paths, t)),
    unit_mask=flat(home).astype(jnp.float32),
    owner=flat(owner),
    logp_sampler=flat(jnp.where(trained, leaf.logp, 0)),
    prompt_tokens=problems.tokens,
    prompt_length=problems.length,
  )
