"""Films for users: the bandit of a matrix, its texts, and LinUCB against a loop in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from verbal_bandits_tokens import tokenizer

from grpo_jax.data import movielens
from grpo_jax.errors import UserError
from grpo_jax.models import decoder
from grpo_jax.models.config import ModelConfig
from grpo_jax.systems.evolve_bandits import games as verbal_bandits
from grpo_jax.systems.evolve_bandits import transcripts as bandit_transcripts
from grpo_jax.systems.evolve_bandits import words
from grpo_jax.systems.evolve_bandits.movies import movies
from grpo_jax.tabular import bandits

RATINGS = movielens.synthetic(6, users=230)
FAMILY, SCENE = movies(RATINGS, steps=12, heldout=True)
GAMES = 5
TASKS = jax.vmap(FAMILY.task)(jax.random.split(jax.random.key(0), GAMES))
KEY = jax.random.key(1)


@pytest.mark.parametrize(("heldout", "first", "count"), [(False, 0, 200), (True, 200, 30)])
def test_state_i_is_user_i_of_the_texts_and_its_rewards_are_the_ratings(heldout, first, count):
  family, scene = movies(RATINGS, steps=12, heldout=heldout)
  assert family.states == len(scene.users) == count
  states, arms, task = jnp.arange(count), jnp.arange(6), family.task(jax.random.key(0))
  seen = jax.vmap(family.observe)(states)
  np.testing.assert_allclose(seen, scene.contexts, atol=1e-6)
  mean = jax.vmap(lambda s: jax.vmap(lambda a: family.mean(task, s, a))(arms))(states)
  np.testing.assert_allclose(mean, RATINGS.table[first : first + count], atol=2e-5)
  for user, said in zip(RATINGS.users[first:], scene.users, strict=False):
    assert said.startswith(f"{user}; ")
  assert scene.names == RATINGS.titles


def test_a_smaller_rank_rewards_the_best_approximation_of_the_ratings():
  family, scene = movies(RATINGS, steps=12, heldout=False, rank=2, features=1)
  left, sizes, right = np.linalg.svd(RATINGS.table, full_matrices=False)
  want = (left[:, :2] * sizes[:2] @ right[:2])[:200]
  task = family.task(jax.random.key(0))
  step = lambda s, a: family.step(task, s, a, jax.random.key(3))[1]
  made = jax.vmap(lambda s: jax.vmap(lambda a: step(s, a))(jnp.arange(6)))(jnp.arange(200))
  np.testing.assert_allclose(made, want, atol=2e-5)
  assert family.observation == 2 and scene.contexts.shape == (200, 2)
  shown = np.asarray([float(user.split("; ")[1]) for user in scene.users])
  np.testing.assert_allclose(shown, scene.contexts[:, 0] * 230**0.5, atol=0.051)


def test_all_players_meet_the_same_users_who_are_many():
  always = lambda seen, action, reward, key: np.zeros(GAMES, int)
  one = verbal_bandits.play(FAMILY, TASKS, KEY, 12, always)
  other = verbal_bandits.play_learner(FAMILY, TASKS, KEY, 12, bandits.uniform(6))
  np.testing.assert_array_equal(one.seen, other.seen)
  assert len(np.unique(one.seen)) > 15 and one.seen.max() < 30
  table = RATINGS.table[200:]
  for games in (one, other):
    np.testing.assert_allclose(games.reward, table[games.seen, games.action], atol=2e-5)
    lost = table[games.seen].max(axis=2) - table[games.seen, games.action]
    np.testing.assert_allclose(games.lost, lost, atol=2e-5)
    assert (np.asarray(games.lost) >= 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_linucb_chooses_as_a_loop_in_float64_and_as_its_guidance_says(alpha):
  steps = 60
  learner = bandits.linucb_disjoint(6, 6, c=alpha)
  games = verbal_bandits.play_learner(FAMILY, TASKS, KEY, steps, learner)
  action, reward, seen = (np.asarray(x) for x in (games.action, games.reward, games.seen))
  told = 0
  for g in range(GAMES):
    gram, moment = [np.eye(6) for _ in range(6)], [np.zeros(6) for _ in range(6)]
    for t in range(steps):
      x = SCENE.contexts[seen[g, t]]
      inverse = [np.linalg.inv(a) for a in gram]
      value = np.asarray([(i @ b) @ x for i, b in zip(inverse, moment, strict=True)])
      bonus = np.asarray([alpha * np.sqrt(x @ i @ x) for i in inverse])
      pulls = list(zip(action[g, :t], reward[g, :t], strict=True))
      guided = words.linear_guide(SCENE, pulls, seen[g, : t + 1], alpha)
      np.testing.assert_allclose(guided, (value, bonus), atol=1e-4)
      score = value + bonus
      took = action[g, t]
      assert score[took] >= score.max() - 1.2e-5
      told += np.sort(score)[-2] < score.max() - 1.2e-5
      gram[took] += np.outer(x, x)
      moment[took] += reward[g, t] * x
  assert told > 0.5 * GAMES * steps


def test_a_model_reads_of_the_users_and_lines_of_unequal_length_have_no_transcript():
  tok = tokenizer()
  config = ModelConfig(
    vocab_size=tok.vocab_size, hidden_size=8, intermediate_size=8, num_layers=1, num_heads=2,
    num_kv_heads=1, head_dim=4, max_position=4096, tie_embeddings=True,
  )  # fmt: skip
  who = verbal_bandits.Speaker(config, tok, SCENE, "raw", bucket=64)
  params = decoder.init(config, jax.random.key(0))
  games = verbal_bandits.play(FAMILY, TASKS, KEY, 2, who.player(params))
  assert games.action.shape == (GAMES, 2) and games.action.max() < 6
  pulls = [
    [(int(a), float(r))] for a, r in zip(games.action[:, 0], games.reward[:, 0], strict=True)
  ]
  prompt, length = who.prompts(pulls, games.seen)
  text = tok.backend.decode(prompt[0, : length[0]].tolist(), False)
  assert text == words.body(SCENE, "raw", pulls[0], games.seen[0])
  with pytest.raises(UserError, match="users come, and lines differ"):
    bandit_transcripts.lines(who)
