"""Arms named by a model: scoring against brute force, and the two ways to play a raw history."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import naive_logp, params_of
from verbal_bandits_tokens import tokenizer

from grpo_jax.envs import contextual
from grpo_jax.errors import UserError
from grpo_jax.models import choices
from grpo_jax.models.config import ModelConfig
from grpo_jax.models.tokenizer import Tokenizer
from grpo_jax.systems.evolve_bandits import games as verbal_bandits
from grpo_jax.systems.evolve_bandits import transcripts as bandit_transcripts
from grpo_jax.systems.evolve_bandits import words
from grpo_jax.systems.evolve_bandits.games import Speaker
from grpo_jax.tabular import bandits
from grpo_jax.types import Batch


def small(tok: Tokenizer) -> ModelConfig:
  return ModelConfig(
    vocab_size=tok.vocab_size, hidden_size=16, intermediate_size=24, num_layers=2, num_heads=4,
    num_kv_heads=2, head_dim=6, max_position=512, tie_embeddings=True,
  )  # fmt: skip


SCENE = words.Scenario("Arms: {names}.", "go", ("ab", "c", "dd"))
FAMILY = contextual.get("bandit", arms=3, steps=5, reward="bernoulli", means="gap", gap=0.5)
TASKS = jax.vmap(FAMILY.task)(jax.random.split(jax.random.key(3), 4))
SPLIT, WHOLE = tokenizer(), tokenizer(SCENE.names)


def speaker(tok, style):
  return Speaker(config=small(tok), tokenizer=tok, scene=SCENE, style=style, bucket=16)


def brute(speaker, params, pulls):
  """log pi by a float64 pass over each whole text, one name at a time."""
  tok = speaker.tokenizer
  prompt = [*speaker.trunk, *tok.backend.encode(words.body(SCENE, speaker.style, pulls))]
  score = []
  for name in SCENE.names:
    ids = np.asarray(tok.backend.encode(f" {name}"), np.int32)
    each = naive_logp(speaker.config, params, np.asarray(prompt, np.int32), ids)
    score.append(each[np.arange(len(ids)), ids].sum())
  return score - np.logaddexp.reduce(score)


@pytest.mark.parametrize("style", words.STYLES)
@pytest.mark.parametrize("tok", [SPLIT, WHOLE], ids=["names of several tokens", "of one"])
def test_arm_probabilities_are_those_of_scoring_every_name_on_its_own(tok, style):
  who = speaker(tok, style)
  params = params_of(who.config)
  pulls = [[], [(1, 1.0)], [(0, 0.0), (2, 1.0), (2, 0.0)]]
  log_pi = np.asarray(who.log_policy(params, pulls))
  want = [brute(who, params, p) for p in pulls]
  np.testing.assert_allclose(log_pi, want, atol=2e-4)
  np.testing.assert_allclose(np.exp(log_pi).sum(1), 1, rtol=1e-5)
  assert np.ptp(log_pi) > 0.5


def test_a_transcript_read_in_one_pass_scores_as_its_prompts_do_with_the_same_gradient():
  who = speaker(WHOLE, "raw")
  params = params_of(who.config)
  action = np.asarray([[0, 2, 1], [1, 1, 0]], np.int32)
  reward = np.asarray([[1, 0, 0], [0, 1, 1]], np.float32)
  extra = bandit_transcripts.text(bandit_transcripts.lines(who), action, reward)
  fields = {"unit": jnp.zeros((2, 3), jnp.int32), "unit_mask": jnp.ones((2, 1))}
  whole = Batch(
    tokens=jnp.asarray(action), mask=jnp.ones((2, 3)), owner=jnp.arange(2)[:, None],
    extra=jax.tree.map(jnp.asarray, extra), **fields,
  )  # fmt: skip
  pulls = [list(zip(a, r, strict=True)) for a, r in zip(action, reward, strict=True)]
  prompt, length = who.prompts([p[:t] for p in pulls for t in range(3)])
  single = Batch(
    tokens=jnp.asarray(action.reshape(6, 1)), mask=jnp.ones((6, 1)), owner=jnp.arange(6)[:, None],
    unit=jnp.zeros((6, 1), jnp.int32), unit_mask=jnp.ones((6, 1)),
    prompt_tokens=jnp.asarray(prompt), prompt_length=jnp.asarray(length),
  )  # fmt: skip
  weight = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32))
  passes = {
    "transcript": (bandit_transcripts.forward(who), whole),
    "choices": (choices.make_forward(who.config, who.names, trunk=who.trunk), single),
  }
  found = {}
  for name, (forward, batch) in passes.items():

    def loss(params, forward=forward, batch=batch):
      out = forward(params, batch)
      return jnp.sum(weight * out.logp.reshape(2, 3)), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    found[name] = (out.logp.reshape(2, 3), out.entropy.reshape(2, 3), grads)
  for a, b in zip(*map(jax.tree.leaves, found.values()), strict=True):
    np.testing.assert_allclose(a, b, atol=3e-4 * max(1, float(jnp.abs(b).max())))
  want = [brute(who, params, pulls[0][:t])[action[0, t]] for t in range(3)]
  np.testing.assert_allclose(found["transcript"][0][0], want, atol=2e-4)


def test_playing_with_a_cache_makes_the_choices_of_scoring_every_prompt_anew():
  who = speaker(WHOLE, "raw")
  params = params_of(who.config)
  key = jax.random.key(5)
  for greedy in (False, True):
    slow = verbal_bandits.play(FAMILY, TASKS, key, 5, who.player(params, greedy))
    fast = bandit_transcripts.player(who, FAMILY, 5, greedy)(params, TASKS, key)
    for a, b in zip(slow, fast, strict=True):
      np.testing.assert_allclose(a, b, atol=1e-6)
  assert len(np.unique(slow.action)) > 1


def test_two_players_of_one_arm_meet_the_same_rewards():
  key = jax.random.key(1)
  always = lambda seen, action, reward, key: jnp.ones(4, jnp.int32)
  sometimes = lambda seen, action, reward, key: jnp.full(4, action.shape[1] % 2, jnp.int32)
  a, b = (verbal_bandits.play(FAMILY, TASKS, key, 5, c) for c in (always, sometimes))
  np.testing.assert_array_equal(a.reward[:, 1::2], b.reward[:, 1::2])
  assert a.reward.min() == 0 and a.reward.max() == 1


def test_a_learner_plays_as_its_own_rule_says():
  rule = bandits.ucb(3, form="log_t")
  played = verbal_bandits.play_learner(FAMILY, TASKS, jax.random.key(0), 8, rule)
  games = jax.tree.map(np.asarray, played)
  for g in range(4):
    for t in range(8):
      count, total = words.tally_text(
        3, list(zip(games.action[g, :t], games.reward[g, :t], strict=True))
      )
      value, bonus = words.guide(count, total)
      assert games.action[g, t] == np.argmax((value + bonus).astype(np.float32))
  best = np.asarray(TASKS.mean).argmax(1)
  np.testing.assert_allclose(games.lost, np.where(games.action == best[:, None], 0, 0.5), atol=1e-6)


def test_names_that_cannot_be_told_apart_and_texts_that_do_not_grow_are_refused():
  with pytest.raises(UserError, match="'a' begins 'ab'"):
    choices.encode(SPLIT, ("a", "ab"))
  with pytest.raises(UserError, match="only a raw history"):
    bandit_transcripts.lines(speaker(WHOLE, "summary"))
  with pytest.raises(UserError, match="splits one of ab, c, dd"):
    bandit_transcripts.lines(speaker(SPLIT, "raw"))
