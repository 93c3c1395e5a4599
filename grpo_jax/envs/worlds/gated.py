"""Easy, hard and hopeless prompts in chosen shares, each with a demonstration.

Tokens: `kinds` letters, "E", "H", "X" (the family of a prompt), ">", "~". The prompt is the family,
`depth` letters and ">". The answer is one or `depth` letters and STOP; it may begin with one "~".
  E easy: the first letter shown.
  H hard: the letters backwards, each replaced by the next of the alphabet (z -> a). Right or
    wrong as a whole: exploration finds it with probability below V^-depth, demonstrations teach it.
  X hopeless: `depth` letters drawn apart from the prompt. Nothing in the prompt tells them, but
    they are fixed by the problem's id, so a fixed set of prompts can be learnt by heart.
Demonstrations (`solution`) always begin with "~", an odd style that the reward does not ask for:
how far a policy drifts to it shows in `styled`. Reward: 1 for the right letters.
With `shown`, the start's `habit` is plain: it answers every prompt with the first letter, but for a
share `shown` of the hard prompts, which it answers rightly. shown=0: no rollout solves a hard
prompt, and only demonstrations teach them; the more is shown, the more exploration finds alone.
Parts: `easy`, `hard`, `hopeless`, the reward in that family; `styled`, whether "~" comes first.

Chance: (1 + 1/V) (easy V^-2 + (1-easy) V^-(depth+1)). Best on fresh prompts, exactly:
easy + hard + hopeless kinds^-depth. For papers 63, 56, 65, 72.
"""

import string

import jax.numpy as jnp

from grpo_jax.envs.world import PAD, STOP, Problem, Verdict, World, check, draw, pad, read
from grpo_jax.errors import UserError

_FIRST = 2
_LUCK = 2**24  # float32 holds these
_TOLERANCE = 1e-6


def make(
  *,
  hard: float = 0.4,
  hopeless: float = 0.2,
  depth: int = 3,
  kinds: int = 8,
  shown: float | None = None,
) -> World:
  """Shares of hard and hopeless prompts, the rest is easy; `shown` (if not given: the start
  imitates demonstrations): the share of hard prompts that the start is taught plainly."""
  check("gated.hard", hard, 0)
  check("gated.hopeless", hopeless, 0)
  if hard + hopeless > 1 + _TOLERANCE:
    raise UserError(
      f"gated.hard={hard} with hopeless={hopeless}: give shares that sum to 1 or less"
    )
  check("gated.depth", depth, 1, 16)
  check("gated.kinds", kinds, 2, 26)
  check("gated.shown", 0.0 if shown is None else shown, 0, 1)
  family_token, end, flourish = _FIRST + kinds, _FIRST + kinds + 3, _FIRST + kinds + 4
  size = depth + 2
  easy = max(0.0, 1.0 - hard - hopeless)

  def problem(key):
    wanted = ((1, _LUCK), (depth, kinds), (depth, kinds), *[(1, _LUCK)] * (shown is not None))
    (luck,), letters, label, *told = draw(key, *wanted)
    luck = luck.astype(jnp.float32) / _LUCK
    family = (luck >= easy).astype(jnp.int32) + (luck >= easy + hard).astype(jnp.int32)
    first = jnp.where(jnp.arange(depth) == 0, letters + _FIRST, PAD)
    answer = jnp.stack([first, (letters[::-1] + 1) % kinds + _FIRST, label + _FIRST])[family]
    head = (family + family_token)[None]
    tokens = jnp.concatenate([head, letters + _FIRST, jnp.full((1,), end, jnp.int32)])
    data = {"family": family, "answer": answer, "count": jnp.where(family == 0, 1, depth)}
    if shown is not None:
      data["told"] = (family == 1) & (told[0][0].astype(jnp.float32) < shown * _LUCK)
    return Problem(tokens=tokens, length=jnp.int32(depth + 2), data=data)

  def score(problem, state, tokens, length):
    del state
    written, count, stopped = read(tokens, length)
    styled = written[0] == flourish
    letters = jnp.where(styled, written[1 : depth + 1], written[:depth])
    correct = stopped & (count - styled.astype(jnp.int32) == problem.data["count"])
    correct &= jnp.all(letters == problem.data["answer"])
    by_family = correct & (jnp.arange(3) == problem.data["family"])
    parts = jnp.append(by_family, styled).astype(jnp.float32)
    return Verdict(reward=correct.astype(jnp.float32), correct=correct, parts=parts)

  symbols = ("_", ".", *string.ascii_lowercase[:kinds], "E", "H", "X", ">", "~")
  v = float(len(symbols))
  return World(
    name="gated",
    symbols=symbols,
    prompt=depth + 2,
    answer=size,
    problem=problem,
    score=score,
    solution=lambda problem: _demonstration(problem, flourish),
    habit=None if shown is None else _plain,
    chance=(1 + 1 / v) * (easy * v**-2 + (1 - easy) * v ** -(depth + 1)),
    best=easy + hard + hopeless * float(kinds) ** -depth,
    parts=("easy", "hard", "hopeless", "styled"),
  )


def _ended(letters, count):
  answer = jnp.append(letters, jnp.int32(PAD))
  return jnp.where(jnp.arange(answer.size) == count, STOP, answer)


def _demonstration(problem, flourish):
  answer = _ended(problem.data["answer"], problem.data["count"])
  return jnp.concatenate([jnp.full((1,), flourish, jnp.int32), answer])


def _plain(problem):
  told, letters = problem.data["told"], problem.data["answer"]
  first = jnp.where(jnp.arange(letters.size) == 0, problem.tokens[1], PAD)
  answer = _ended(jnp.where(told, letters, first), jnp.where(told, letters.size, 1))
  return pad(answer, letters.size + 2)
