"""Training on bandits in words: what imitation and GRPO make of games, and a whole small run."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from verbal_bandits_tokens import tokenizer

from configs import evolve_bandits
from experiments.evolve_bandits import __main__ as main
from experiments.evolve_bandits import run
from grpo_jax import methods
from grpo_jax.envs import contextual
from grpo_jax.models import decoder, loading
from grpo_jax.models.config import ModelConfig
from grpo_jax.systems.evolve_bandits import training as verbal_bandits
from grpo_jax.systems.evolve_bandits import transcripts, words
from grpo_jax.systems.evolve_bandits.games import Games, Speaker
from grpo_jax.tabular import bandits

CONDITIONS = run.conditions(evolve_bandits.get_config())
FILMS = "configs/evolve_bandits.py:contextual,debug"
SCENE = words.scenario("buttons", 3)
TOKENS = tokenizer(SCENE.names)
CONFIG = ModelConfig(
  vocab_size=TOKENS.vocab_size, hidden_size=16, intermediate_size=24, num_layers=1, num_heads=4,
  num_kv_heads=2, head_dim=6, max_position=1024, tie_embeddings=True,
)  # fmt: skip
WHO = Speaker(CONFIG, TOKENS, SCENE, "raw")
FORWARD = jax.jit(transcripts.forward(WHO))
FAMILY = contextual.get("bandit", arms=3, steps=4, reward="bernoulli", means="gap", gap=0.5)
# Two tasks of two games: of the first the better game is game 0, of the second game 3.
ACTION = np.asarray([[0, 0, 1, 0], [1, 2, 1, 1], [2, 1, 0, 2], [0, 1, 1, 1]], np.int32)
LOST = 0.5 * (np.asarray([0, 0, 1, 1])[:, None] != ACTION)
GAMES = Games(ACTION, (LOST == 0).astype(np.float32), LOST, np.zeros_like(ACTION))


@pytest.fixture(scope="module")
def params():
  return decoder.init(CONFIG, jax.random.key(0))


def choices(params, games):
  """log-probabilities [R, T] of what was chosen."""
  _, batch = verbal_bandits.batch_of(transcripts.lines(WHO), games)
  return FORWARD(params, batch).logp


def test_the_reward_of_a_game_is_minus_its_regret_and_its_advantage_is_on_all_its_choices():
  rollouts, batch = verbal_bandits.batch_of(transcripts.lines(WHO), GAMES, group=2)
  np.testing.assert_allclose(rollouts.reward, -LOST.sum(1).reshape(2, 2))
  credit = methods.get("grpo").credit((), rollouts, batch)
  adv = np.asarray(credit.adv)[:, 0]
  assert adv[0] > 0 > adv[1] and adv[3] > 0 > adv[2]
  np.testing.assert_allclose(credit.weight, 1 / 16)
  sft = methods.get("sft").credit((), rollouts, batch)
  np.testing.assert_allclose(sft.adv, 1)
  np.testing.assert_allclose(sft.weight, 1 / 16)


@pytest.mark.parametrize("micro", [1, 2])
def test_grpo_makes_the_choices_of_the_better_game_likelier(params, micro):
  c = evolve_bandits.get_config()
  c.grpo.update(steps=1, micro=micro, lr=1e-3, warmup=0)
  draw = lambda params, key: (GAMES, 2)
  steps = verbal_bandits.train(WHO, params, "grpo", draw, c.grpo, c.optimizer, jax.random.key(0))
  ((metrics, after),) = steps
  change = np.asarray(choices(after, GAMES) - choices(params, GAMES)).sum(1)
  assert change[0] > 0 > change[1] and change[3] > 0 > change[2]
  assert metrics["regret"] == pytest.approx(LOST.sum(1).mean())
  assert metrics["loss"] == pytest.approx(0, abs=1e-5)  # ratio 1, advantages of mean 0


def test_imitation_lowers_the_loss_from_a_uniform_policy_and_its_loss_is_the_likelihood(params):
  c = evolve_bandits.get_config()
  c.oft.update(steps=20, games=4, lr=2e-2, warmup=0)
  seen = []
  oracle = verbal_bandits.from_oracle(FAMILY, bandits.ucb(3, form="log_t"), 4, 4)

  def draw(params, key):
    games, group = oracle(params, key)
    seen.append((games, float(-choices(params, games).mean())))
    return games, group

  steps = verbal_bandits.train(WHO, params, "sft", draw, c.oft, c.optimizer, jax.random.key(0))
  losses = [metrics["loss"] for metrics, _ in steps]
  np.testing.assert_allclose(losses, [loss for _, loss in seen], atol=1e-4)
  assert losses[0] == pytest.approx(math.log(3), abs=0.3) and losses[-1] < 0.6 * losses[0]
  assert (np.asarray(seen[0][0].action)[:, :3] == np.arange(3)).all()


def test_games_of_a_task_are_side_by_side_and_differ(params):
  draw = verbal_bandits.from_policy(WHO, FAMILY, tasks=2, group=3, steps=4)
  games, group = draw(params, jax.random.key(0))
  assert group == 3 and games.action.shape == (6, 4)
  action = np.asarray(games.action)
  same = action[:3] == action[0]
  best = np.where(np.asarray(games.lost) == 0, action, -1).reshape(2, -1)
  assert all(len(set(b[b >= 0])) <= 1 for b in best) and not same.all()


# ---- the program ---------------------------------------------------------------------------------


@pytest.fixture
def tiny(monkeypatch, params):
  loaded = []
  load = lambda spec: loaded.append(spec) or (CONFIG, jax.tree.map(np.asarray, params), TOKENS)
  monkeypatch.setattr(loading, "load", load)
  return loaded


@pytest.mark.slow
def test_the_debug_config_plays_every_condition_and_a_second_run_plays_none(
  tiny, tmp_path, capsys, monkeypatch
):
  flags = ["--config=configs/evolve_bandits.py:debug", f"--workdir={tmp_path}/run"]
  assert main.main(flags) == 0
  printed = capsys.readouterr().out.splitlines()
  final = json.loads(printed[-1].removeprefix("final: "))
  evidence = json.loads((tmp_path / "run/verdict.json").read_text())
  assert final["verdict"] == evidence["verdict"]
  assert set(evidence["numbers"]) == set(CONDITIONS) and len(evidence["statements"]) == 6
  for row in evidence["numbers"].values():
    assert 0 <= row["regret"] <= 2 and row["beta"] >= 0 and 0 <= row["OptFrac"] <= 1
  assert (tmp_path / "run/table.md").read_text().count("\n") == 2 + len(CONDITIONS)
  assert (tmp_path / "run/curves.png").stat().st_size > 1000
  assert tiny == ["smollm2"]

  (tmp_path / "run/oft_grpo.json").unlink()
  before = (tmp_path / "run/oft.json").read_text()
  made = []
  monkeypatch.setattr(run.Bench, "_train", lambda self, *a: made.append(a[0]) or a[2])
  assert main.main(flags) == 0
  assert made == ["grpo"] and (tmp_path / "run/oft.json").read_text() == before
  made.clear(), tiny.clear()
  assert main.main(flags) == 0 and not made and not tiny


@pytest.mark.slow
def test_the_contextual_debug_config_plays_its_conditions_for_users(tiny, tmp_path):
  flags = [f"--config={FILMS}", f"--workdir={tmp_path}/run"]
  assert main.main(flags) == 0
  evidence = json.loads((tmp_path / "run/verdict.json").read_text())
  names = ("linucb", "greedy", "uniform", "base_rh", "base_sh", "guided_ag", "few_shot_sh")
  assert tuple(evidence["numbers"]) == names and len(evidence["statements"]) == 4
  games = {name: json.loads((tmp_path / f"run/{name}.json").read_text()) for name in names}
  assert all(g["seen"] == games["linucb"]["seen"] for g in games.values())
  for row in evidence["numbers"].values():
    assert 0 <= row["regret"] <= 20 and row["alpha"] is None and 0 <= row["OptFrac"] <= 1
  assert "SYNTHETIC" in evidence["notes"] and (tmp_path / "run/table.md").exists()


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.data.arms=11", "data.arms=11"),
    ("--config.data.scenario=bottons", "did you mean 'buttons'"),
    ("--config.conditions=ucb2", "conditions: unknown name 'ucb2'; did you mean 'ucb'"),
    ("--config.eval.games=0", "eval.games=0: must be at least 1"),
    ("--config.grpo.micro=3", "grpo.micro=3: must divide the 2 prompts"),
    ("--config.grpo.tsks=3", "did you mean 'tasks'"),
    ("--config.data.rank=3", "data: unknown name 'rank'"),
    ("--config.data.scenario=movies", "data.source: missing for scenario 'movies'; films are"),
    ("--workdr=x", "did you mean '--workdir'"),
  ],
)
def test_a_wrong_setting_is_one_line_before_the_model_is_loaded(
  tiny, tmp_path, capsys, flag, message
):
  config = "--config=configs/evolve_bandits.py:debug"
  assert main.main([config, f"--workdir={tmp_path}/run", flag]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1 and not tiny


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--config.data.arms=31", "data.arms=31: the synthetic ratings are of 1 to 30 films"),
    ("--config.data.source=movilens", "did you mean 'movielens'"),
    ("--config.data.gap=0.2", "data: unknown name 'gap'"),
    ("--config.data.scenario=buttons", "data.gap: missing for scenario 'buttons'; films are"),
    ("--config.data.rank=0", "data.rank=0: must be at least 1"),
    ("--config.data.features=-1", "data.features=-1: must be at least 0"),
    ("--config.conditions=oft", "conditions: unknown name 'oft'"),
    ("--config.conditions=ucb", "conditions: unknown name 'ucb'; did you mean 'linucb'"),
  ],
)
def test_a_wrong_setting_of_films_is_one_line_too(tiny, tmp_path, capsys, flag, message):
  assert main.main([f"--config={FILMS}", f"--workdir={tmp_path}/run", flag]) == 2
  error = capsys.readouterr().err
  assert message in error and error.count("\n") == 1 and not tiny


def test_movielens_that_is_not_there_is_one_line(tiny, tmp_path, capsys):
  flags = [f"--config={FILMS}", f"--workdir={tmp_path}/run", "--config.data.source=movielens"]
  assert main.main([*flags, f"--config.data.path={tmp_path}"]) == 2
  error = capsys.readouterr().err
  assert "is no prepared tfds data set" in error and error.count("\n") == 1 and not tiny


def test_one_arm_has_no_fit_and_no_regret(tiny, tmp_path):
  flags = ["--config=configs/evolve_bandits.py:debug", f"--workdir={tmp_path}/run"]
  flags += ["--config.data.arms=1", "--config.conditions=['ucb','base_rh']"]
  assert main.main(flags) == 0
  rows = json.loads((tmp_path / "run/verdict.json").read_text())["numbers"]
  assert all(r["regret"] == 0 and r["alpha"] is None for r in rows.values())
  assert jnp.isfinite(rows["ucb"]["OptFrac"])
