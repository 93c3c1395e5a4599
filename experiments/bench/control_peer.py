"""The peer of the control benchmark: PPO end to end under jit, in the design of PureJaxRL.

Written anew for the benchmark from the public description (C. Lu et al., 2022, "Discovered Policy
Optimisation", https://arxiv.org/abs/2210.05639, and the project's read-me): one scan over updates,
inside it one over environment steps that carries an actor-critic and keeps log-probabilities and
values, generalized advantages by a backward scan, epochs over shuffled single steps, advantages
normalized within a mini-batch, an episode's end always worth 0. flax.linen and optax, nothing of
grpo_jax. The numbers are those that the task of the benchmark names.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState


@dataclasses.dataclass(frozen=True)
class Sizes:
  updates: int = 976
  envs: int = 4
  steps: int = 128
  epochs: int = 4
  mini: int = 4
  lr: float = 2.5e-4


GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, CLIP_NORM = 0.99, 0.95, 0.2, 0.01, 0.5, 0.5


class ActorCritic(nn.Module):
  actions: int

  @nn.compact
  def __call__(self, x):
    def tower(outputs, gain):
      h = x
      for _ in range(2):
        h = nn.tanh(nn.Dense(64, kernel_init=nn.initializers.orthogonal(np.sqrt(2)))(h))
      return nn.Dense(outputs, kernel_init=nn.initializers.orthogonal(gain))(h)

    return tower(self.actions, 0.01), jnp.squeeze(tower(1, 1.0), -1)


class Transition(NamedTuple):
  observation: jax.Array
  action: jax.Array
  log_p: jax.Array
  value: jax.Array
  reward: jax.Array
  done: jax.Array
  returned: jax.Array  # return of the last episode that ended


def log_prob(logits, action):
  return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], -1)[..., 0]


def loss_of(params, network, part, adv, target):
  logits, value = network.apply(params, part.observation)
  ratio = jnp.exp(log_prob(logits, part.action) - part.log_p)
  adv = (adv - adv.mean()) / (adv.std() + 1e-8)
  policy = -jnp.minimum(ratio * adv, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * adv).mean()
  near = part.value + jnp.clip(value - part.value, -CLIP, CLIP)
  error = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2).mean()
  p = jax.nn.softmax(logits)
  entropy = -(p * jax.nn.log_softmax(logits)).sum(-1).mean()
  return policy + VALUE * error - ENTROPY * entropy


def make_run(name: str, sizes: Sizes):
  """run(seed) -> f32[updates]: the mean return of the environments' last episodes."""
  env, env_params = gymnax.make(name)
  network = ActorCritic(env.action_space(env_params).n)
  reset = jax.vmap(env.reset, in_axes=(0, None))
  step = jax.vmap(env.step, in_axes=(0, 0, 0, None))

  def apply(params, observation) -> tuple[jax.Array, jax.Array]:
    logits, value = network.apply(params, observation)
    return jnp.asarray(logits), jnp.asarray(value)

  def rate(count):
    done = count // (sizes.mini * sizes.epochs) / sizes.updates
    return sizes.lr * (1 - done)

  def act(carry, _):
    params, state, observation, total, returned, rng = carry
    rng, to_act, to_step = jax.random.split(rng, 3)
    logits, value = apply(params, observation)
    action = jax.random.categorical(to_act, logits)
    keys = jax.random.split(to_step, sizes.envs)
    after, state, reward, terminated, truncated, _ = step(keys, state, action, env_params)
    done = terminated | truncated
    total = total + reward
    returned = jnp.where(done, total, returned)
    total = jnp.where(done, 0.0, total)
    log_p = log_prob(logits, action)
    seen = Transition(observation, action, log_p, value, reward, done, returned)  # pyright: ignore
    return (params, state, after, total, returned, rng), seen

  def advantages(seen, last_value):
    def back(carry, now):
      adv, following = carry
      goes_on = 1.0 - now.done
      delta = now.reward + GAMMA * following * goes_on - now.value
      adv = delta + GAMMA * LAMBDA * goes_on * adv
      return (adv, now.value), adv

    _, adv = jax.lax.scan(back, (jnp.zeros_like(last_value), last_value), seen, reverse=True)
    return adv, adv + seen.value

  def epoch(carry, _):
    train, rng, data = carry
    rng, to_mix = jax.random.split(rng)
    order = jax.random.permutation(to_mix, sizes.envs * sizes.steps)
    mixed = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[order], data)
    parts = jax.tree.map(lambda x: x.reshape(sizes.mini, -1, *x.shape[1:]), mixed)

    def one(train, part):
      grads = jax.grad(loss_of)(train.params, network, *part)
      return train.apply_gradients(grads=grads), None

    train, _ = jax.lax.scan(one, train, parts)
    return (train, rng, data), None

  def update(carry, _):
    train, state, observation, total, returned, rng = carry
    live = (train.params, state, observation, total, returned, rng)
    live, seen = jax.lax.scan(act, live, None, sizes.steps)
    _, state, observation, total, returned, rng = live
    _, last_value = apply(train.params, observation)
    data = (seen, *advantages(seen, last_value))
    (train, rng, _), _ = jax.lax.scan(epoch, (train, rng, data), None, sizes.epochs)
    return (train, state, observation, total, returned, rng), seen.returned[-1].mean()

  def run(seed):
    rng, to_init, to_reset = jax.random.split(jax.random.key(seed), 3)
    observation, state = reset(jax.random.split(to_reset, sizes.envs), env_params)
    tx = optax.chain(optax.clip_by_global_norm(CLIP_NORM), optax.adam(rate, eps=1e-5))
    params = network.init(to_init, observation)
    train = TrainState.create(apply_fn=network.apply, params=params, tx=tx)
    # A fresh gymnax state holds Python numbers: give the scan the types of a later one.
    zero = jnp.zeros((sizes.envs,))
    after = jax.eval_shape(act, (params, state, observation, zero, zero, rng), None)[0][1]
    state = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), state, after)
    start = (train, state, observation, zero, zero, rng)
    return jax.lax.scan(update, start, None, sizes.updates)[1]

  return run
