"""What the fused loop samples: which problems, by which plan, and what a person watches of it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from grpo_jax.envs.world import World
from grpo_jax.errors import UserError
from grpo_jax.rollout import chain, play, tree
from grpo_jax.train.update import SUPPLIED
from grpo_jax.types import Batch, Chain, Fixed, Flat, Method, Metrics, Rollouts, Tree


def check(world: World, method: Method) -> None:
  """Raises UserError where the fused loop cannot give the method what it reads."""
  plan, supplied = method.plan, {*SUPPLIED}
  if isinstance(plan, Fixed):
    raise UserError("plan Fixed: the fused loop samples; give completions to experiments.train")
  if isinstance(plan, Tree):
    tree.check(world, plan)
    supplied |= {"parent"}
  elif isinstance(plan, Chain):
    chain.check(world, plan)
    supplied |= {"unit_reward"}
  else:
    supplied |= {"drift"}
    supplied |= {"unit_reward"} if world.step else set()
    supplied |= {"answer_logp"} if world.gold else set()
  if unknown := set(method.needs) - supplied:
    raise UserError(
      f"the method needs {', '.join(sorted(unknown))}, which world {world.name} or the fused loop "
      "does not supply"
    )


def make_draw(world: World, config, plan: Flat | Fixed | Tree | Chain, group: int):
  """draw(params, problems, ids, keys) -> (rollouts, batch, what to watch).

  `group` completions a prompt; a Tree has its own number of them.
  """
  assert not isinstance(plan, Fixed)

  def draw(params, problems, ids, keys) -> tuple[Rollouts, Batch, Metrics]:
    given = (world, config, params, problems, ids, keys)
    reach, more = None, jnp.int32(0)
    if isinstance(plan, Tree):
      rollouts, batch = tree.play(*given, plan=plan)
      reach = tree.reach(plan, rollouts)
    elif isinstance(plan, Chain):
      rollouts, batch, more = chain.play(*given, group=group, plan=plan)
    else:
      rollouts, batch = play.play(*given, group=group)
    sampled = jnp.sum(batch.mask) + more.astype(jnp.float32)
    return rollouts, batch, observe(rollouts, reach) | {"sampled": sampled}

  return draw


def observe(rollouts: Rollouts, reach: Float[Array, "N G"] | None = None) -> Metrics:
  """What a person watches, over all that was sampled.

  reach: for a tree, the share of a prompt's completions that pass through each node.
  """
  reward = rollouts.reward
  if reach is None:
    share = reach = jnp.full(reward.shape, 1 / reward.shape[1], jnp.float32)
  else:
    share = jnp.where(tree.ends(rollouts), reach, 0)
  mean = lambda x, share=share: jnp.sum(share * x.astype(jnp.float32)) / reward.shape[0]
  most = jnp.max(jnp.where(share > 0, reward, -jnp.inf), axis=1)
  least = jnp.min(jnp.where(share > 0, reward, jnp.inf), axis=1)
  return {
    "reward": mean(reward),
    "correct": mean(rollouts.correct),
    "length": mean(rollouts.length, reach),
    "truncated": mean(rollouts.truncated),
    "zero_variance": jnp.mean((most == least).astype(jnp.float32)),
  }


def idle(adv: Float[Array, "R T"], batch: Batch) -> Float[Array, ""]:
  """The share of rows with trained tokens that have no advantage other than 0."""
  trained = jnp.any(batch.mask > 0, axis=1)
  nothing = trained & ~jnp.any((adv != 0) & (batch.mask > 0), axis=1)
  count = lambda x: jnp.sum(x, dtype=jnp.float32)
  return count(nothing) / jnp.maximum(count(trained), 1)


def choose_problems(key, count: int, size: int, weights=None) -> Int[Array, " size"]:
  """Ids of `size` different problems: uniformly, or by weights (without replacement)."""
  noise = jax.random.gumbel(key, (count,))
  if weights is not None:
    positive = weights > 0
    noise = jnp.where(positive, noise + jnp.log(jnp.where(positive, weights, 1)), noise - 1e9)
  return jax.lax.top_k(noise, size)[1].astype(jnp.int32)


def keep_informative(rollouts, batch, size: int):
  """DAPO's dynamic sampling: the first `size` groups whose rewards differ; where there are too few,
  the others follow with `alive` = False."""
  reward = rollouts.reward
  differ = jnp.max(reward, axis=1) > jnp.min(reward, axis=1)
  order = jnp.argsort(~differ, stable=True)[:size]
  count, group = reward.shape

  def take(x):
    y = x.reshape(count, x.shape[0] // count, *x.shape[1:])[order]
    return y.reshape(-1, *x.shape[1:])

  kept, rows = jax.tree.map(take, (rollouts, batch))
  place = jnp.repeat(jnp.arange(size) - order, rows.owner.shape[0] // size) * group
  alive = kept.alive & jnp.take(differ, order)[:, None]
  return kept.replace(alive=alive), rows.replace(owner=rows.owner + place[:, None])
