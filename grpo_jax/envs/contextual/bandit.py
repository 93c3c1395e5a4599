"""Multi-armed bandits: an episode is one pull, the state is the constant 1.

Pretraining contexts, "Supervised Pretraining Can Learn In-Context Reinforcement Learning" (DPT,
arXiv:2306.14892, from its code): arms drawn independently from one policy a context,
  p = (1 - c) Dirichlet(1, ..., 1) + c e_i,   i uniform,   c uniform on {0, 0.1, ..., 1}.

Means of the arms: "uniform" U(0, 1), DPT's, which is also its Bernoulli prior Beta(1, 1). Those of
BanditBench ("EVOLvE", arXiv:2410.06238): "gap", one arm 1/2 + gap/2, the others 1/2 - gap/2, for
bernoulli rewards with gap = 0.5 (easy) or 0.2 (hard); "normal", N(0, spread^2), for gaussian ones
with spread = noise = 1 (easy) or 3 (hard), where its "variance" is used as a standard deviation.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.core.transitions import Transitions
from grpo_jax.envs.contextual.family import Family
from grpo_jax.envs.world import check
from grpo_jax.errors import UserError
from grpo_jax.names import one_of
from grpo_jax.types import Record, record

REWARDS = ("gaussian", "bernoulli")
MEANS = ("uniform", "gap", "normal")


@record
class Task(Record):
  mean: Float[Array, " A"]  # expected reward of each arm


def make(
  *,
  arms: int = 5,
  steps: int = 500,
  reward: str = "gaussian",
  noise: float = 0.3,
  means: str = "uniform",
  gap: float = 0.5,
  spread: float = 1.0,
) -> Family:
  """`noise`: standard deviation of gaussian rewards (DPT's code calls it var); bernoulli rewards
  are 0 or 1 and have none. The rest as above.

  Raises UserError for values out of range, and for bernoulli rewards of normal means.
  """
  check("bandit.arms", arms, 1, 10_000)
  check("bandit.steps", steps, 1)
  check("bandit.noise", noise, 0)
  check("bandit.gap", gap, 0, 1)
  check("bandit.spread", spread, 0)
  one_of("bandit.reward", reward, REWARDS)
  one_of("bandit.means", means, MEANS)
  if reward == "bernoulli" and means == "normal":
    raise UserError("bandit.means='normal': bernoulli rewards need means in 0..1, give 'uniform'")

  def task(key):
    if means == "normal":
      return Task(mean=spread * jax.random.normal(key, (arms,)))
    if means == "uniform":
      return Task(mean=jax.random.uniform(key, (arms,)))
    best = jax.nn.one_hot(jax.random.randint(key, (), 0, arms), arms)
    return Task(mean=0.5 - gap / 2 + gap * best)

  def pay(mean, key):
    if reward == "bernoulli":
      return (jax.random.uniform(key, mean.shape) < mean).astype(jnp.float32)
    return mean + noise * jax.random.normal(key, mean.shape)

  def pulls(task, key, steps):
    policy, choice, payment = jax.random.split(key, 3)
    action = choose(choice, behaviour(policy, arms), steps)
    return action, pay(task.mean[action], payment)

  return of_arms("bandit", arms, steps, task, pay, pulls)


def of_arms(name, arms: int, steps: int, task, pay, pulls, shuffle: bool = True) -> Family:
  """A family whose tasks have a field `mean` f32[A] and whose state is the constant 1.

  pay(mean, key) -> rewards of that shape; pulls(task, key, steps) -> (action i32[steps], reward).
  """

  def behave(task, key, steps):
    action, reward = pulls(task, key, steps)
    ones = jnp.ones((steps, 1))
    return Transitions(state=ones, action=action, next_state=ones, reward=reward)

  one = lambda task, key: jnp.ones(1)
  return Family(
    name=name,
    observation=1,
    actions=arms,
    horizon=1,
    steps=steps,
    task=task,
    start=one,
    step=lambda task, state, action, key: (state, pay(task.mean[action], key)),
    observe=lambda state: state,
    label=lambda task, state: jnp.argmax(task.mean).astype(jnp.int32),
    mean=lambda task, state, action: task.mean[action],
    behave=behave,
    query=one,
    best=lambda task: jnp.max(task.mean),
    shuffle=shuffle,
    states=1,
    index=lambda state: jnp.int32(0),
  )


def behaviour(key: Array, arms: int) -> Float[Array, " A"]:
  """DPT's random policy of one context, see above."""
  simplex, share, which = jax.random.split(key, 3)
  draws = jax.random.exponential(simplex, (arms,))  # normalized, they are Dirichlet(1, ..., 1)
  c = jax.random.randint(share, (), 0, 11).astype(jnp.float32) / 10
  point = jax.nn.one_hot(jax.random.randint(which, (), 0, arms), arms)
  return (1 - c) * draws / jnp.sum(draws) + c * point


def choose(key: Array, policy: Float[Array, " A"], steps: int) -> Int[Array, " H"]:
  """Independent draws from a policy; an arm of probability 0 is never drawn."""
  below = jnp.cumsum(policy)
  uniform = jax.random.uniform(key, (steps, 1))
  return jnp.sum(uniform >= (below / below[-1])[None, :-1], axis=1, dtype=jnp.int32)
