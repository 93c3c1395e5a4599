import jax
import jax.numpy as jnp
import numpy as np
import pytest
import token_worlds as tw

from grpo_jax.envs.worlds.free_length import loop_share, repeat_share


def loop(body):
  n, found = len(body), 0.0
  for p in range(1, n // 2 + 1):
    copies = 1
    while n - (copies + 1) * p >= 0 and body[n - (copies + 1) * p :][:p] == body[n - p :]:
      copies += 1
    found = p * copies / n if copies >= 2 else found
  return found


def repeat(body, n=3):
  grams = [tuple(body[i : i + n]) for i in range(len(body) - n + 1)]
  marked = {j for i, g in enumerate(grams) if grams.count(g) > 1 for j in range(i, i + n)}
  return len(marked) / max(len(body), 1)


def oracle(world, modulus):
  def verdict(prompt, written):
    need, a, plus, b, equals = prompt
    assert (plus, equals) == ("+", "=")
    body, stopped = tw.before_stop(written)
    correct = stopped and body.count(">") == 1 and body[-2:-1] == [">"]
    correct = correct and body[-1] == str((int(a) + int(b)) % modulus)
    correct = correct and body.count("#") >= int(need)
    return correct, correct, [len(body) / world.answer, loop(body), repeat(body)]

  return verdict


def test_verdicts_are_those_of_python_lists():
  world = tw.get("free_length", need=6, answer=12)
  tw.agree(world, oracle(world, 10))


def test_the_largest_number_is_asked_for_and_a_habit_writes_more_than_it_must():
  world = tw.get("free_length", task="max", terms=3, need=2, extra=5, answer=12)

  def verdict(prompt, written):
    need, *rest = prompt
    assert rest[1::2] == ["|", "|", "="]
    body, stopped = tw.before_stop(written)
    correct = stopped and body.count(">") == 1 and body[-2:-1] == [">"]
    correct = correct and body[-1] == str(max(map(int, rest[::2])))
    correct = correct and body.count("#") >= int(need)
    return correct, correct, [len(body) / world.answer, loop(body), repeat(body)]

  tw.agree(world, verdict)
  made, solutions = tw.problems(world, tw.ROWS)
  _, habits = tw.compiled(world.imitated)[0](0, np.arange(tw.ROWS))
  played = tw.play(world, made, np.asarray(habits))
  more = played.length - np.sum(solutions != 0, axis=1)
  assert np.all(played.verdict.correct) and set(more) == set(range(6))


def test_loops_and_repeats_of_papers_01_and_31():
  both = jax.jit(lambda x, n: (loop_share(x, n), repeat_share(x, n)))
  rng = np.random.default_rng(0)
  texts = ["abcabcabc", "xxabab", "abcdef", "baaaaa", "a", "aa", "aba", "abcxabc", "abcabcab"]
  texts += ["".join(rng.choice(list("ab"), rng.integers(1, 13))) for _ in range(200)]
  for text in texts:
    tokens = np.zeros(12, np.int32)
    tokens[: len(text)] = [ord(c) for c in text]
    got = both(jnp.asarray(tokens), jnp.int32(len(text)))
    np.testing.assert_allclose(got, (loop(text), repeat(text)), rtol=1e-6, err_msg=text)
  assert loop("abcabcabc") == 1 and loop("xxabab") == loop("baaaaa") == 4 / 6
  assert loop("abcdef") == 0 and repeat("abcxabc") == 6 / 7


def test_reward_does_not_depend_on_the_length():
  world = tw.get("free_length", need=6, answer=12)
  made, solutions = tw.problems(world, tw.ROWS)
  some = tw.pick(made, slice(32))
  steps = made.data["steps"][:32]
  for longer in range(4):
    proposals = np.roll(solutions[:32], longer, axis=1)
    proposals[:, :longer] = world.symbols.index("#")
    played = tw.play(world, some, proposals)
    assert np.all(played.verdict.correct == (steps + longer + 3 <= world.answer))
    np.testing.assert_array_equal(played.length, np.minimum(steps + longer + 3, world.answer))


def test_chance_is_the_share_over_all_answers():
  world = tw.get("free_length", modulus=2, need=1, answer=5)
  verdict = oracle(world, 2)
  found = [
    tw.exact_chance(world, lambda written, n=n: verdict([n, "1", "+", "1", "="], written)[1])
    for n in "01"
  ]
  assert np.mean(found) == pytest.approx(world.chance, rel=1e-9)
