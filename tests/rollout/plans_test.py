"""Plans and needs are open: a new plan is one file, a new need one row, refusals are one line."""

import dataclasses
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax import envs, methods, rollout, types
from grpo_jax.errors import UserError
from grpo_jax.rollout import plans
from grpo_jax.train import supply
from grpo_jax.train.programs import fused
from grpo_jax.train.update import Cut

WORLD = envs.get("modular_addition", modulus=5)
CONFIG = fused.tiny_config(WORLD.vocab, hidden=16, layers=1, heads=2)
SIZES = fused.Sizes(
  updates=1, eval_every=1, prompts=4, group=4, problems=16, heldout=8, split="id"
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mirrored(types.Plan):
  """Completions of every prompt, each twice."""

  def rollouts(self, group: int) -> int:
    return 2 * group


FILE = """
  import jax
  import jax.numpy as jnp
  from grpo_jax.rollout import flat
  from grpo_jax.types import Flat

  LOOPS, SUPPLIES = ("fused",), ("parent",)

  def check(plan, where):
    pass

  def play(plan, game):
    played = flat.play(Flat(), game)
    n, g = played.rollouts.reward.shape
    twice = lambda x: jnp.concatenate([x, x], axis=1)
    small = played.rollouts.replace(prompt=None, parts=None)
    rows = played.batch.replace(prompt_tokens=None, prompt_length=None, owner=None)
    both = jax.tree.map(
      lambda x: twice(x.reshape(n, g, *x.shape[1:])).reshape(2 * n * g, *x.shape[1:]), rows
    )
    rollouts = jax.tree.map(twice, small).replace(prompt=played.rollouts.prompt)
    batch = both.replace(
      owner=jnp.arange(2 * n * g, dtype=jnp.int32)[:, None],
      prompt_tokens=played.batch.prompt_tokens,
      prompt_length=played.batch.prompt_length,
    )
    return played._replace(rollouts=rollouts, batch=batch)
"""


@pytest.fixture
def planted(tmp_path, monkeypatch):
  (tmp_path / "mirrored.py").write_text(textwrap.dedent(FILE))
  monkeypatch.setattr(rollout, "__path__", [*rollout.__path__, str(tmp_path)])
  yield
  sys.modules.pop("grpo_jax.rollout.mirrored", None)


def asks(method: types.Method, **changes) -> types.Method:
  return dataclasses.replace(method, **changes)


def test_a_new_plan_is_one_file_and_a_new_need_one_row(planted, monkeypatch):
  seen = []

  def left(sources, batch):
    spare = WORLD.answer - jnp.sum(batch.mask, axis=1)
    return batch.replace(extra={**batch.extra, "left": spare})

  monkeypatch.setitem(
    supply.NEEDS, "left", supply.Need("batch.extra['left']", ("fused",), fill=left)
  )
  base = methods.get("grpo")

  def credit(state, rollouts, batch):
    seen.append((rollouts.reward.shape, batch.extra["left"].shape))
    return base.credit(state, rollouts, batch)

  method = asks(base, plan=Mirrored(), needs=("left", "parent"), credit=credit)
  state, curves = jax.jit(fused.make_run(WORLD, method, SIZES, CONFIG))(0)
  assert seen[0] == ((4, 8), (32,)) and int(state.step) == 1
  assert np.isfinite(curves.train["loss"]).all()


def test_refusals_name_the_plan_the_need_the_loop_and_the_fix(planted):
  grpo = methods.get("grpo")

  @dataclasses.dataclass(frozen=True)
  class Nowhere(types.Plan):
    pass

  with pytest.raises(UserError, match=r"plan Nowhere: nothing plays it; add .*/nowhere.py"):
    plans.of(Nowhere())
  with pytest.raises(UserError, match=r"loop 'llm': it does not play the plan Mirrored.*'fused'"):
    plans.check(Mirrored(), plans.Where("llm", "sample.max_new_tokens", 8))
  with pytest.raises(UserError, match="unknown name 'logp_odl'; did you mean 'logp_old'"):
    supply.check(asks(grpo, needs=("logp_odl",)), "llm")
  with pytest.raises(UserError, match=r"'offline': the method needs 'drift' .*constant forgetting"):
    supply.check(asks(grpo, needs=("drift",)), "offline")


@pytest.mark.parametrize("name", ["dapo", "ppo", "gtpo", "dpo"])
def test_the_old_policy_scores_a_batch_once_whatever_needs_it(name):
  method = methods.get(name)
  on, off = (supply.fills(method, cut) for cut in (Cut(), Cut(epochs=2)))
  assert len(off) == len(set(off)) <= 2
  assert {f.__name__ for f in off} >= {"_old"} and set(on) <= set(off)
