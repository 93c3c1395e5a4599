"""Follow links through a hidden table by a tool: "@" and a key; the world writes what it links to.

Tokens: `keys` letters, "@", "=", "?". Each key links to a random key; the prompt is a key and "?",
and the answer is the key that `hops` links lead to. A turn is "@" and a key, after which the world
writes the linked key, or "=" and the answer, which ends the episode; so does any other token. At
most `calls` calls. Reward: 1 for the right answer. `turn_reward`: 1/(hops+1) for each call that
tells the next link of the path and for the right answer, which sum to 1 in the best episode. Parts:
`calls`; `links`, how many links of the path were told in their order.

Chance: with V symbols, V^-2 sum over c <= calls of (keys / V^2)^c. Best: 1. For papers 20, 24, 53,
85: the oracle label of a useful call is `turn_reward` > 0.
"""

import string

import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.envs.world import Next, Problem, Verdict, World, check, draw, floats, follow
from grpo_jax.types import Record, record

_FIRST = 2
_OVER = -1
_OPEN, _KEY, _TELL, _SAY = range(4)  # what the next token is: start of a turn, key, result, answer


@record
class _State(Record):
  phase: Array  # one of the above, or _OVER
  turn: Array
  links: Array  # of the path, told so far
  right: Array
  useful: Array  # f32[calls + 1]


def make(*, keys: int = 8, hops: int = 2, calls: int = 3) -> World:
  """`calls` must reach for `hops` links."""
  check("lookup.keys", keys, 2, 52)
  check("lookup.hops", hops, 1, 16)
  check("lookup.calls", calls, hops, 32)
  call, say, question = range(_FIRST + keys, _FIRST + keys + 3)
  size = 3 * calls + 2

  def problem(key):
    table, (first,) = draw(key, (keys, keys), (1, keys))
    path = [first]
    for _ in range(hops):
      path.append(table[path[-1]])
    tokens = jnp.stack([path[0] + _FIRST, jnp.int32(question)])
    return Problem(
      tokens=tokens, length=jnp.int32(2), data={"table": table, "path": jnp.stack(path)}
    )

  def start(problem):
    del problem
    zero = jnp.int32(0)
    state = _State(
      phase=zero, turn=zero, links=zero, right=jnp.bool_(False), useful=jnp.zeros(calls + 1)
    )
    return state, Next(force=jnp.int32(-1), done=jnp.bool_(False), turn=zero)

  def score(problem, state, tokens, length):
    del problem, tokens, length
    reward = state.right.astype(jnp.float32)
    parts = floats(state.turn, state.links)
    return Verdict(reward=reward, correct=state.right, parts=parts, turn_reward=state.useful)

  def choose(problem, state):
    path = problem.data["path"] + _FIRST
    first = jnp.where(state.links < hops, call, say)
    return jnp.stack([first, path[jnp.minimum(state.links, hops)], 0, path[hops]])[state.phase]

  step = lambda problem, state, token: _step(problem.data, state, token, hops)
  symbols = ("_", ".", *string.ascii_letters[:keys], "@", "=", "?")
  v = float(len(symbols))
  return World(
    name="lookup",
    symbols=symbols,
    prompt=2,
    answer=size,
    problem=problem,
    score=score,
    solution=lambda problem: follow(start, step, choose, problem, size),
    chance=sum((keys / v**2) ** c for c in range(calls + 1)) / v**2,
    turns=calls + 1,
    parts=("calls", "links"),
    start=start,
    step=step,
    gold=lambda problem: (
      jnp.stack([jnp.int32(say), problem.data["path"][hops] + _FIRST]),
      jnp.asarray([False, True]),
    ),
  )


def _step(data, state: _State, token, hops: int):
  table, path = data["table"], data["path"]
  keys, calls = table.shape[0], state.useful.shape[0] - 1
  call, say = _FIRST + keys, _FIRST + keys + 1
  value = token - _FIRST
  reads = (state.phase == _KEY) & (value >= 0) & (value < keys)
  next_link = reads & (state.links < hops) & (value == path[jnp.minimum(state.links, hops)])
  right = (state.phase == _SAY) & (value == path[hops])
  calls_now = (token == call) & (state.turn < calls)
  after_open = jnp.where(calls_now, _KEY, jnp.where(token == say, _SAY, _OVER))
  phase = jnp.where(reads | (state.phase == _TELL), jnp.where(reads, _TELL, _OPEN), _OVER)
  phase = jnp.where(state.phase == _OPEN, after_open, phase).astype(jnp.int32)
  earned = (next_link | right).astype(jnp.float32) / (hops + 1)
  turn = state.turn + reads.astype(jnp.int32)
  state = _State(
    phase=phase,
    turn=turn,
    links=state.links + next_link.astype(jnp.int32),
    right=state.right | right,
    useful=state.useful.at[state.turn].add(earned),
  )
  force = jnp.where(reads, table[jnp.clip(value, 0, keys - 1)] + _FIRST, -1)
  return state, Next(force=force, done=phase == _OVER, turn=turn)
