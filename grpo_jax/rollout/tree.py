"""The plan `Tree`: rollouts that branch (paper 16, SPO-tree).

Depth by depth: every unfinished node of a depth writes its segment, then its cache is copied for
its children. A node's tokens are sampled and fed once, whatever grows from it. Token worlds are of
one turn; a language model's trees are grown by the same program and judged on the host.

Nodes of a prompt are numbered depth by depth. The batch has one row a path of the deepest level;
column t of a path belongs to its node of depth t // segment_tokens. A node is trained in the first
of the paths through it and is context (mask 0) in the others, so unit d of a row is the path's node
of depth d, and exists in the row that trains it.
"""

# pyright: reportArgumentType=false
# The records are annotated with jax arrays; on the host they hold numpy's.

import functools
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from grpo_jax import sharding
from grpo_jax.core import trees
from grpo_jax.envs.world import PAD, STOP, Verdict
from grpo_jax.errors import UserError
from grpo_jax.models.config import ModelConfig
from grpo_jax.rollout import choose, sampler
from grpo_jax.rollout.collect import (
  Ask,
  Collected,
  bucket,
  encode,
  judge,
  padded,
  prompt_keys,
  text_of,
)
from grpo_jax.rollout.plans import Draw, Game, Where, observe
from grpo_jax.types import Batch, Rollouts, Tree

LOOPS = ("llm", "fused")
SUPPLIES = ("parent",)
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


class Level(NamedTuple):
  """The nodes of one depth and the paths that end in them."""

  tokens: Int[Array, "N W T"]
  logp: Float[Array, "N W T"]
  length: Int[Array, "N W"]  # of the path
  own: Int[Array, "N W"]  # of it the node's own
  entered: Bool[Array, "N W"]
  stopped: Bool[Array, "N W"]


def check(plan: Tree, where: Where) -> None:
  if where.turns:
    raise UserError(f"plan Tree: {where.name} has turns; use a world of one turn, or Flat")
  if not plan.branching or min(plan.branching) < 1 or plan.segment_tokens < 1:
    raise UserError(
      f"branching={plan.branching}, segment_tokens={plan.segment_tokens}: give numbers from 1"
    )
  if plan.segment_tokens * (len(plan.branching) - 1) >= where.budget:
    raise UserError(
      f"segment_tokens={plan.segment_tokens} with {len(plan.branching)} depths leaves the last one "
      f"nothing of the {where.budget} tokens of {where.name}: lower one of them"
    )


# ---- token worlds --------------------------------------------------------------------------------


def play(plan: Tree, game: Game) -> Draw:
  """Rollouts are nodes. An unfinished inner node has reward 0, is not correct and not truncated."""
  world, problems = game.world, game.problems
  levels = grow_tree(
    game.config, game.params, problems.tokens, problems.length, game.keys,
    plan=plan, budget=world.answer, stop_ids=(STOP,),
  )  # fmt: skip
  score = jax.vmap(jax.vmap(world.score, in_axes=(None, None, 0, 0)), in_axes=(0, None, 0, 0))
  verdicts = [score(problems, (), level.tokens, level.length) for level in levels]
  rollouts = assemble(plan, levels, verdicts, game.ids)
  batch = to_batch(levels, plan, problems.tokens, problems.length)
  watched = observe(rollouts, jnp.sum(batch.mask), reach(plan, rollouts), ends(rollouts))
  return Draw(rollouts, batch, problems, watched)


def assemble(plan: Tree, levels: list["Level"], verdicts: list[Verdict], ids) -> Rollouts:
  """All nodes of the trees as rollouts."""
  last = len(levels) - 1
  each = [
    _nodes(level, verdict, depth == last)
    for depth, (level, verdict) in enumerate(zip(levels, verdicts, strict=True))
  ]
  joined = jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *each)
  parent, depth = _family(plan)
  shape = (ids.shape[0], plan.nodes)
  return Rollouts(
    prompt=ids,
    parent=jnp.broadcast_to(parent[None], shape),
    depth=jnp.broadcast_to(depth[None], shape),
    **joined,
  )


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


@functools.partial(jax.jit, static_argnames=("config", "plan", "budget", "stop_ids", "choice"))
def grow_tree(
  config: ModelConfig,
  params: Any,
  prompt: Int[Array, "N P"],
  prompt_length: Int[Array, " N"],
  keys: Array,
  *,
  plan: Tree,
  budget: int,
  stop_ids: tuple[int, ...],
  choice: choose.Choice = _SAMPLED,
  trunk: Int[Array, " C"] | None = None,
) -> list[Level]:
  """The levels of a tree below each prompt; keys: one typed key a prompt."""
  n, t, width = prompt.shape[0], budget, plan.branching[0]
  params, prefix, cache, last = sampler.open_cache(
    config, params, prompt, prompt_length, width, t, trunk=trunk
  )
  stops = jnp.asarray(stop_ids, jnp.int32)
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
      config, params, prefix, keys, choice, stops, live, jnp.asarray(nodes, jnp.int32), begin, end
    )
    own = jnp.sum(on, axis=2, dtype=jnp.int32)
    path = {
      "tokens": path["tokens"].at[:, :, begin:end].set(token),
      "logp": path["logp"].at[:, :, begin:end].set(logp),
      "length": path["length"] + own,
    }
    levels.append(Level(**path, own=own, entered=entered, stopped=live.done))
  return levels


def _write(config, params, prefix, keys, choice, stops, live: _Live, nodes, begin, end):
  """Columns begin to end - 1 of the nodes: (live, (tokens, logp, sampled), [N, W, end - begin])."""
  n, width = live.done.shape
  draws = sampler.uniforms(keys, nodes, jnp.arange(begin, end))

  def one(live: _Live, u):
    flat = live.logits.reshape(n * width, -1)
    token, logp = sampler.choose_with_logp(flat, u.reshape(-1), choice)
    on = ~live.done
    token = jnp.where(on, token.reshape(n, width), PAD)
    wrote = token, jnp.where(on, logp.reshape(n, width), 0), on
    stop = jnp.any(token[..., None] == stops[None, None], axis=-1) & on
    live = live._replace(token=token, fed=live.fed + 1, done=live.done | stop)
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


def _nodes(level: Level, verdict: Verdict, last: bool) -> dict:
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


def to_batch(levels: list[Level], plan: Tree, prompt, prompt_length) -> Batch:
  """One row a path of the deepest level; see the top of this file."""
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
    prompt_tokens=prompt,
    prompt_length=prompt_length,
  )


# ---- language models -----------------------------------------------------------------------------


def collect(plan: Tree, ask: Ask) -> Collected:
  """Rows are paths. A node that cannot be scored, and one all of whose children cannot, is dead."""
  s, problems = ask.sampling, ask.draw(ask.count)
  start = time.monotonic()
  prompt, prompt_length = encode(s, [p.prompt for p in problems])
  put = sharding.put((padded(s, prompt), padded(s, prompt_length)), sharding.rows(s.mesh))
  levels = grow_tree(
    s.config, ask.params, *put, prompt_keys(s, problems, ask.step),
    plan=plan, budget=s.budget, stop_ids=s.stop_ids, choice=s.choice,
    trunk=np.asarray(s.trunk, np.int32) if s.trunk else None,
  )  # fmt: skip
  levels = [
    jax.tree.map(lambda x: np.asarray(x)[: len(problems)], level)
    for level in sharding.to_host(levels)
  ]
  sampled = time.monotonic()
  verdicts, alive, texts, scores = _judged(ask, problems, levels)
  seconds = {"sample": sampled - start, "verify": time.monotonic() - sampled}

  ids = np.asarray([p.id for p in problems], np.int32)
  levels = [x._replace(entered=a) for x, a in zip(levels, alive, strict=True)]
  longest = max(int(level.length.max()) for level in levels)
  width = min(bucket(longest), s.budget)
  narrow = [x._replace(tokens=x.tokens[..., :width], logp=x.logp[..., :width]) for x in levels]
  rollouts, batch = _records(plan, levels, narrow, verdicts, ids, prompt, prompt_length)
  shown = _paths(levels, verdicts, ids)
  fed = sum(int(level.own.sum()) for level in levels)
  whole = int(np.asarray(shown.length).sum())
  return Collected(
    *jax.tree.map(np.asarray, (rollouts, batch)),
    problems=list(problems),
    texts=texts,
    failed=scores.failed,
    errors=scores.errors,
    seconds=seconds,
    shown=shown,
    counts={"tokens_fed": fed, "tokens_fed_without_reuse": whole},
  )


@functools.partial(jax.jit, static_argnames="plan")
def _records(plan, levels, narrow, verdicts, ids, prompt, prompt_length):
  return assemble(plan, levels, verdicts, ids), to_batch(narrow, plan, prompt, prompt_length)


def _ended(level: Level, last: bool) -> np.ndarray:
  """Nodes that are whole completions: they have a text to judge."""
  return np.asarray(level.entered & (level.stopped | last))


def _judged(ask: Ask, problems, levels: list[Level]):
  """(a Verdict a level, who is alive a level, texts [N][paths], the pool's scores)."""
  s, last = ask.sampling, len(levels) - 1
  where = [(d, n, w) for d, x in enumerate(levels) for n, w in np.argwhere(_ended(x, d == last))]
  texts = [text_of(s, levels[d].tokens[n, w, : levels[d].length[n, w]]) for d, n, w in where]
  lengths = [int(levels[d].length[n, w]) for d, n, w in where]
  scores = judge(ask.pool, texts, [problems[n] for _, n, _ in where], lengths)
  shapes = [level.entered.shape for level in levels]
  parts = scores.parts.shape[1]
  reward = [np.zeros(shape, np.float32) for shape in shapes]
  correct, alive = ([np.zeros(shape, bool) for shape in shapes] for _ in range(2))
  part = [np.zeros((*shape, parts), np.float32) for shape in shapes]
  told: dict[tuple[int, int, int], str] = {}
  for i, (d, n, w) in enumerate(where):
    alive[d][n, w] = scores.alive[i]
    reward[d][n, w] = scores.reward[i] if scores.alive[i] else 0
    correct[d][n, w], part[d][n, w] = scores.correct[i], np.nan_to_num(scores.parts[i])
    told[d, n, w] = texts[i]
  for d in reversed(range(last)):  # an unfinished node lives by its children
    below = alive[d + 1].reshape(*shapes[d], -1).any(axis=2)
    alive[d] |= below & levels[d].entered & ~levels[d].stopped
  each = zip(reward, correct, part, strict=True)
  verdicts = [Verdict(reward=r, correct=c, parts=p) for r, c, p in each]
  paths, ends = shapes[-1][1], _ends_of_paths(levels)
  of_path = lambda n, w: told.get((d := int(ends[n, w]), n, w // (paths // shapes[d][1])), "")
  rows = [[of_path(n, w) for w in range(paths)] for n in range(len(problems))]
  return verdicts, alive, rows, scores


def _ends_of_paths(levels: list[Level]) -> np.ndarray:
  """i32[N, paths]: the depth at which each path of the deepest level has its end."""
  n, paths = levels[-1].entered.shape
  end = np.full((n, paths), len(levels) - 1)
  for depth in reversed(range(len(levels) - 1)):
    stopped = np.repeat(levels[depth].stopped, paths // levels[depth].stopped.shape[1], axis=1)
    end[stopped] = depth
  return end


def _paths(levels: list[Level], verdicts: list[Verdict], ids: np.ndarray) -> Rollouts:
  """The paths of the deepest level as a reader sees them: whole completions."""
  paths, end = levels[-1].entered.shape[1], _ends_of_paths(levels)
  wide = lambda xs: np.stack([np.repeat(x, paths // x.shape[1], axis=1) for x in xs])
  pick = lambda xs: np.take_along_axis(
    (y := wide(xs)), end[None].reshape(1, *end.shape, *(1,) * (y.ndim - 3)), axis=0
  )[0]
  stopped = pick([level.stopped for level in levels])
  return Rollouts(
    prompt=ids,
    reward=pick([v.reward for v in verdicts]),
    alive=pick([level.entered for level in levels]),
    correct=pick([v.correct for v in verdicts]),
    truncated=~stopped,
    length=pick([level.length for level in levels]),
    parts=pick([v.parts for v in verdicts]),
  )
