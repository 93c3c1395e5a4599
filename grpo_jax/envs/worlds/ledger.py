"""Read facts one at a time and add them up, with a short report at the start of every turn.

Tokens: digits 0..9, `facts` letters (names), "[", "]", "@", "=", "?", and the noise "~", "^", "%",
"&". Each name has a hidden digit. The prompt is the `asked` names in their order and "?"; the
answer is the sum of their digits mod 10. A turn is, if the policy likes, a report "[ .. ]" of at
most `report` tokens of any kind but STOP, then "@" and a name, after which the world writes its
digit and `noise` noise tokens, or "=" and the answer. The answer, or any other token, ends the
episode, and so does a reading in the last of the `turns` turns. Reward: 1 for the right sum.
`turn_reward`: 1/(asked+1) for the first reading of each asked name and for the right sum.
Parts: `asked`, how many asked names were read; `reports`, how many reports were written.

The world does not forget. Whoever plays it with a window (paper 03) shows the policy the prompt,
the last report and the last result, which `Next.turn` delimits; then the sum must pass through
reports. Solutions report the sum so far wherever there is one.

Chance: (1+q)/V^2 sum over t < turns of ((1+q) facts / V^2)^t with the chance of a report after "[",
q = sum over w <= report of ((V-2)/V)^w / V^2. Best: 1. For papers 03, 06, 09.
"""

import string

import jax.numpy as jnp
from jaxtyping import Array

from grpo_jax.envs import world
from grpo_jax.types import Record, record

_FIRST = 2
_NAME = _FIRST + 10
_NOISE = ("~", "^", "%", "&")
_OVER, _OPEN, _REPORT, _ACT, _WHICH, _TELL, _SAY = range(-1, 6)  # what the next token is part of


@record
class _State(Record):
  phase: Array  # one of the above
  turn: Array
  written: Array  # tokens of this report, or of this result
  fact: Array  # that is being told
  read: Array  # bool[facts]
  reports: Array
  right: Array
  useful: Array  # f32[turns]


def make(
  *, facts: int = 6, asked: int = 3, turns: int = 5, report: int = 2, noise: int = 2
) -> world.World:
  """`asked` of `facts` names; report=0 forbids reports."""
  world.check("ledger.facts", facts, 1, 26)
  world.check("ledger.asked", asked, 1, facts)
  world.check("ledger.turns", turns, asked + 1, 64)
  world.check("ledger.report", report, 0, 32)
  world.check("ledger.noise", noise, 0, 32)
  signs = range(_NAME + facts, _NAME + facts + 5)
  size = turns * (2 + (report + 2 if report else 0)) + (turns - 1) * (1 + noise)

  def problem(key):
    count = facts * noise
    values, order, about = world.draw(key, (facts, 10), (facts, world.MANY), (count, len(_NOISE)))
    names = jnp.sort(jnp.argsort(order)[:asked])
    about = about.reshape(facts, noise) + signs[-1] + 1
    results = jnp.concatenate([values[:, None] + _FIRST, about], axis=1)
    wanted = jnp.any(names[:, None] == jnp.arange(facts)[None, :], axis=0)
    tokens = jnp.append(names + _NAME, jnp.int32(signs[4]))
    data = {"results": results, "asked": wanted, "sum": jnp.sum(values[names]) % 10}
    return world.Problem(tokens=tokens.astype(jnp.int32), length=jnp.int32(asked + 1), data=data)

  def start(problem):
    del problem
    zero, no = jnp.int32(0), jnp.bool_(False)
    state = _State(
      phase=zero, turn=zero, written=zero, fact=zero, read=jnp.zeros(facts, bool), reports=zero,
      right=no, useful=jnp.zeros(turns),
    )  # fmt: skip
    return state, world.Next(force=jnp.int32(-1), done=no, turn=zero)

  def score(problem, state, tokens, length):
    del tokens, length
    reward = state.right.astype(jnp.float32)
    parts = world.floats(jnp.sum(state.read & problem.data["asked"]), state.reports)
    return world.Verdict(reward=reward, correct=state.right, parts=parts, turn_reward=state.useful)

  step = lambda problem, state, token: _step(problem.data, state, token, signs, report)
  choose = lambda problem, state: _choose(problem.data, state, signs, report)
  digits, names = map(str, range(10)), string.ascii_lowercase[:facts]
  symbols = ("_", ".", *digits, *names, "[", "]", "@", "=", "?", *_NOISE)
  v = float(len(symbols))
  q = sum(((v - 2) / v) ** w for w in range(report + 1)) / v**2 if report else 0.0
  return world.World(
    name="ledger",
    symbols=symbols,
    prompt=asked + 1,
    answer=size,
    problem=problem,
    score=score,
    solution=lambda problem: world.follow(start, step, choose, problem, size),
    chance=(1 + q) / v**2 * sum(((1 + q) * facts / v**2) ** t for t in range(turns)),
    turns=turns,
    parts=("asked", "reports"),
    start=start,
    step=step,
  )


def _step(data, state: _State, token, signs, report: int):
  opened, closed, reads, says, _ = signs
  (facts, told), turns = data["results"].shape, state.useful.shape[0]
  name = token - _NAME
  named = (state.phase == _WHICH) & (name >= 0) & (name < facts)
  right = (state.phase == _SAY) & (token - _FIRST == data["sum"])
  new = named & jnp.any((jnp.arange(facts) == name) & data["asked"] & ~state.read)
  fact = jnp.where(named, name, state.fact)
  may_read = (token == reads) & (state.turn < turns - 1)
  acts = jnp.where(may_read, _WHICH, jnp.where(token == says, _SAY, _OVER))
  begins = jnp.where((token == opened) & (report > 0), _REPORT, acts)
  goes_on = (token != world.STOP) & (state.written < report)
  reported = (state.phase == _REPORT) & (token == closed)
  writes = jnp.where(reported, _ACT, jnp.where(goes_on, _REPORT, _OVER))
  tells = jnp.where(state.written + 1 < told, _TELL, _OPEN)
  after = [begins, writes, acts, jnp.where(named, _TELL, _OVER), tells, jnp.int32(_OVER)]
  phase = jnp.where(state.phase == _OVER, _OVER, jnp.stack(after)[state.phase])
  stays = (phase == state.phase) & ((phase == _REPORT) | (phase == _TELL))
  written = jnp.where(stays, state.written + 1, 0)
  turn = state.turn + named.astype(jnp.int32)
  earned = (new | right).astype(jnp.float32) / (jnp.sum(data["asked"]).astype(jnp.float32) + 1)
  state = _State(
    phase=phase,
    turn=turn,
    written=written,
    fact=fact,
    read=state.read | (named & (jnp.arange(facts) == name)),
    reports=state.reports + reported.astype(jnp.int32),
    right=state.right | right,
    useful=state.useful.at[state.turn].add(earned),
  )
  force = jnp.where(phase == _TELL, data["results"][fact, jnp.minimum(written, told - 1)], -1)
  return state, world.Next(force=force, done=phase == _OVER, turn=turn)


def _choose(data, state: _State, signs, report: int):
  opened, closed, reads, says, _ = signs
  values = data["results"][:, 0] - _FIRST
  so_far = jnp.sum(jnp.where(state.read & data["asked"], values, 0)) % 10 + _FIRST
  open_ones = data["asked"] & ~state.read
  acts = jnp.where(jnp.any(open_ones), reads, says)
  begins = jnp.where(jnp.any(state.read) & (report > 0), opened, acts)
  writes = jnp.where(state.written == 0, so_far, closed)
  which = jnp.argmax(open_ones) + _NAME
  return jnp.stack([begins, writes, acts, which, 0, data["sum"] + _FIRST])[state.phase]
