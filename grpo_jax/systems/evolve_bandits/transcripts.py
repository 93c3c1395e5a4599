"""Raw histories of bandits as one growing text: played with a cache, and read in one pass.

A raw history only grows, and every line begins with the words after which an arm is named. So a
game is one text, its prompts are that text's beginnings, and nothing is ever computed twice. Arms
must be named by one token and rewards be 0 or 1, of users that nothing is told of; every line then
has as many tokens.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grpo_jax.envs.contextual.family import Family
from grpo_jax.errors import UserError
from grpo_jax.models import choices, decoder
from grpo_jax.rollout import sampler
from grpo_jax.systems.evolve_bandits.games import Games, Speaker, arrive, keys_at, pay


class Lines(NamedTuple):
  """A transcript is opening, then for every pull a name and what follows its reward."""

  opening: np.ndarray  # i32[O]
  name: np.ndarray  # i32[K]
  after: np.ndarray  # i32[2, L]: from the reward to the next name


def lines(speaker: Speaker) -> Lines:
  """UserError where the names, or the texts after rewards 0 and 1, differ in their tokens."""
  scene, encode = speaker.scene, speaker.tokenizer.backend.encode
  if speaker.style != "raw":
    raise UserError(f"history={speaker.style!r}: only a raw history grows by lines; use 'raw'")
  if scene.users:
    raise UserError("scenario: users come, and lines differ in length; play them prompt by prompt")
  if speaker.names.length.max() > 1:
    raise UserError(f"scenario: the tokenizer splits one of {', '.join(scene.names)}; use others")
  opening = encode(scene.verb)
  size = len(opening)
  after = []
  for reward in (0, 1):
    ends = []
    for name, token in zip(scene.names, speaker.names.tokens[:, 0], strict=True):
      ids = encode(f"{scene.verb} {name}: {reward}\n{scene.verb}")
      if ids[: size + 1] != [*opening, token]:
        raise UserError(f"scenario: {name!r} is not one token of its own in a line; use another")
      ends.append(ids[size + 1 :])
    if any(end != ends[0] for end in ends):
      raise UserError("scenario: a line's tokens depend on the arm; use other names")
    after.append(ends[0])
  if len(after[0]) != len(after[1]):
    raise UserError("scenario: rewards 0 and 1 differ in their number of tokens")
  as_ids = lambda x: np.asarray(x, np.int32)
  return Lines(as_ids(opening), speaker.names.tokens[:, 0], as_ids(after))


def text(lines: Lines, action, reward) -> dict[str, np.ndarray]:
  """Games [R, T] -> "text" i32[R, S], up to the last name, and "where" i32[R, T], the entries that
  are names: what `models.choices.make_transcript_forward` reads."""
  action, reward = np.asarray(action), np.asarray(reward).astype(int)
  rows, steps = action.shape
  each = np.concatenate([lines.name[action][..., None], lines.after[reward]], axis=2)
  opening = np.broadcast_to(lines.opening, (rows, len(lines.opening)))
  whole = np.concatenate([opening, each.reshape(rows, -1)], axis=1)
  where = len(lines.opening) + np.arange(steps) * each.shape[2]
  return {
    "text": whole[:, : where[-1] + 1],
    "where": np.broadcast_to(where, (rows, steps)).astype(np.int32),
  }


class _Slots(NamedTuple):
  """What `sampler.decode` reads, one slot a game."""

  step: Any
  token: Any
  fed: Any
  k: Any
  v: Any


def player(
  speaker: Speaker, family: Family, steps: int, greedy: bool = False
) -> Callable[..., Games]:
  """play(params, tasks, key) -> Games of `steps` pulls: `verbal_bandits.play` of the speaker, but
  one compiled program that feeds every token once."""
  config, line = speaker.config, lines(speaker)
  trunk = jnp.asarray(speaker.trunk, jnp.int32)
  name, after = jnp.asarray(line.name), jnp.asarray(line.after)
  each = 1 + line.after.shape[1]

  def play(params, tasks, key) -> Games:
    games = jax.tree.leaves(tasks)[0].shape[0]
    opening = jnp.broadcast_to(jnp.asarray(line.opening)[None], (games, len(line.opening)))
    length = jnp.full(games, len(line.opening), jnp.int32)
    head = jnp.take(decoder.output_matrix(params), name, axis=0)
    layers, prefix, cache, last = sampler.open_cache(
      config, params, opening, length, 1, each * steps, trunk=trunk
    )

    def feed(carry, token):
      slots, _ = carry
      slots = slots._replace(token=token[:, None], fed=slots.fed + 1)
      x, slots = sampler.decode(config, layers, prefix, slots)
      return (slots._replace(step=slots.step + 1), x[:, 0]), None

    def step(carry, t):
      slots, x = carry
      choice, outcome = keys_at(key, t, games)
      log_pi = jax.nn.log_softmax(jnp.einsum("nd,kd->nk", x, head))
      action = jnp.argmax(log_pi, 1) if greedy else jax.random.categorical(choice, log_pi)
      reward, loss = pay(family, tasks, arrive(family, tasks, outcome), action, outcome)
      tokens = jnp.concatenate([name[action][:, None], after[reward.astype(jnp.int32)]], axis=1)
      carry, _ = jax.lax.scan(feed, (slots, x), tokens.T)
      return carry, Games(action, reward, loss, jnp.zeros_like(action))

    none = jnp.zeros((games, 1), jnp.int32)
    slots = _Slots(step=jnp.int32(0), token=none, fed=none, k=cache, v=cache)
    _, out = jax.lax.scan(step, (slots, last), jnp.arange(steps))
    return Games(*(x.T for x in out))

  return jax.jit(play)


def forward(speaker: Speaker, remat: bool = False):
  """The differentiable pass over the texts of `text`."""
  return choices.make_transcript_forward(
    speaker.config, speaker.names, trunk=speaker.trunk, remat=remat
  )
