"""Each base method against its formula written as float64 Python loops, value and gradient.

The loops share nothing with the library. What a method holds constant (stop-gradient) is read from
`frozen`, so finite differences of the loop over `logp` give the gradient that is claimed.
"""

import math

import numpy as np
import problems
import pytest


def rollouts(p):
  """(i, j) of alive rollouts with trained tokens."""
  n, g, _ = p.trained.shape
  return [(i, j) for i in range(n) for j in range(g) if p.alive[i, j] and p.trained[i, j].any()]


def steps(p, i, j):
  return [t for t in range(p.trained.shape[2]) if p.trained[i, j, t]]


def mean(xs):
  return sum(xs) / len(xs)


def std(xs, ddof):
  if len(xs) <= ddof:
    return 0.0
  m = mean(xs)
  return math.sqrt(sum((x - m) ** 2 for x in xs) / (len(xs) - ddof))


def group(p, i, reward):
  return [reward[i, j] for j in range(p.reward.shape[1]) if p.alive[i, j]]


def group_adv(p, reward=None, ddof=1, eps=1e-4, scale="group"):
  reward = p.reward if reward is None else reward
  every = [r for i in range(len(p.reward)) for r in group(p, i, reward)]
  adv = np.zeros(p.reward.shape)
  for i, j in np.ndindex(*p.reward.shape):
    if p.alive[i, j]:
      mine = group(p, i, reward)
      s = {"group": std(mine, ddof), "batch": std(every, ddof), "none": 1.0 - eps}[scale]
      adv[i, j] = (reward[i, j] - mean(mine)) / (s + eps)
  return adv


def ppo_term(r, a, low=0.2, high=0.2, dual=None):
  value = min(r * a, min(max(r, 1 - low), 1 + high) * a)
  if dual is not None and a < 0:
    value = max(value, dual * a)
  return -value


def ratio(p, logp, i, j, t):
  return math.exp(logp[i, j, t] - p.fields["logp_old"][i, j, t])


def grpo(p, logp, frozen, value, ddof=1, scale="group", dual=None, drop=False):
  adv = group_adv(p, ddof=ddof, scale=scale)
  kept = [(i, j) for i, j in rollouts(p) if not (drop and p.truncated[i, j])]
  total = 0.0
  for i, j in kept:
    terms = [ppo_term(ratio(p, logp, i, j, t), adv[i, j], dual=dual) for t in steps(p, i, j)]
    total += mean(terms)
  return total / len(kept)


def kl_term(kind):
  def term(p, logp, frozen, value):
    def of_token(i, j, t):
      x = logp[i, j, t] - p.fields["logp_ref"][i, j, t]
      x0 = frozen[i, j, t] - p.fields["logp_ref"][i, j, t]
      k3 = math.exp(-x) - 1 + x
      if kind == "rk3":
        return ratio(p, logp, i, j, t) * k3
      if kind in ("k1+", "k3+"):
        constant = {"k1+": x0, "k3+": math.exp(-x0) - 1 + x0}[kind]
        return constant + x * x / 2 - x0 * x0 / 2
      return {"k1": x, "k2": x * x / 2, "k3": k3}[kind]

    kept = rollouts(p)
    kl = mean([mean([of_token(i, j, t) for t in steps(p, i, j)]) for i, j in kept])
    h = mean([mean([p.fields["entropy"][i, j, t] for t in steps(p, i, j)]) for i, j in kept])
    return grpo(p, logp, frozen, value) + 0.04 * kl - 0.01 * h

  return term


def dr_grpo(p, logp, frozen, value):
  adv = group_adv(p, scale="none")
  kept = rollouts(p)
  total = sum(ppo_term(ratio(p, logp, i, j, t), adv[i, j]) for i, j in kept for t in steps(p, i, j))
  return total / (len(kept) * 11)


def dapo(p, logp, frozen, value, most=6, cache=4):
  reward = p.reward.copy()
  for i, j in np.ndindex(*reward.shape):
    length = int(p.trained[i, j].sum())
    if length > most:
      reward[i, j] -= 1
    elif length > most - cache:
      reward[i, j] += ((most - cache) - length) / cache
  adv = group_adv(p, reward)
  pairs = [(i, j, t) for i, j in rollouts(p) for t in steps(p, i, j)]
  return mean([ppo_term(ratio(p, logp, i, j, t), adv[i, j], 0.2, 0.28) for i, j, t in pairs])


def gspo(p, logp, frozen, value, token=False):
  adv, total = group_adv(p), 0.0
  for i, j in rollouts(p):
    ts = steps(p, i, j)
    at = lambda x: math.exp(mean([x[i, j, t] - p.fields["logp_old"][i, j, t] for t in ts]))  # noqa: B023
    if token:
      s = [at(frozen) * math.exp(logp[i, j, t] - frozen[i, j, t]) for t in ts]
      total += mean([ppo_term(x, adv[i, j], 0.05, 0.1) for x in s])
    else:
      total += ppo_term(at(logp), adv[i, j], 0.05, 0.1)
  return total / len(rollouts(p))


def cispo(p, logp, frozen, value, low=0.0):
  adv = group_adv(p)
  terms = []
  for i, j in rollouts(p):
    for t in steps(p, i, j):
      r = min(max(ratio(p, frozen, i, j, t), low), 1.3)
      terms.append(-r * adv[i, j] * logp[i, j, t])
  return mean(terms)


def reinforce(p, logp, frozen, value, baseline=True):
  kept = rollouts(p)
  b = mean(p.reward[p.alive].tolist()) if baseline else 0.0
  return mean([-(p.reward[i, j] - b) * sum(logp[i, j, t] for t in steps(p, i, j)) for i, j in kept])


def rloo(p, logp, frozen, value, beta=0.0):
  n, g = p.reward.shape
  kl = np.zeros((n, g))
  for i, j in np.ndindex(n, g):
    kl[i, j] = sum(
      p.fields["logp_old"][i, j, t] - p.fields["logp_ref"][i, j, t] for t in steps(p, i, j)
    )
  reward = p.reward - beta * kl
  terms = []
  for i, j in rollouts(p):
    others = [reward[i, k] for k in range(g) if k != j and p.alive[i, k]]
    adv = reward[i, j] - mean(others) if others else 0.0
    terms.append(-adv * sum(logp[i, j, t] for t in steps(p, i, j)))
  return mean(terms)


def sft(p, logp, frozen, value):
  return mean([-logp[i, j, t] for i, j in rollouts(p) for t in steps(p, i, j)])


def ppo(p, logp, frozen, value, gamma=0.9, lam=0.8, whiten=True, beta=0.1):
  old, adv, target = p.fields["value_old"], {}, {}
  for i, j in rollouts(p):
    ts = steps(p, i, j)
    for k, t in enumerate(ts):
      total = 0.0
      for m in range(k, len(ts)):  # A_k = sum_m (gamma lam)^(m-k) delta_m
        s = ts[m]
        r = -beta * (p.fields["logp_old"][i, j, s] - p.fields["logp_ref"][i, j, s])
        r += p.reward[i, j] if m == len(ts) - 1 else 0.0
        after = old[i, j, ts[m + 1]] if m + 1 < len(ts) else 0.0
        total += (gamma * lam) ** (m - k) * (r + gamma * after - old[i, j, s])
      adv[i, j, t], target[i, j, t] = total, total + old[i, j, t]
  keys = list(adv)
  if whiten:
    m, s = mean(list(adv.values())), std(list(adv.values()), 1)
    adv = {k: (a - m) / (s + 1e-8) for k, a in adv.items()}
  policy = mean([ppo_term(ratio(p, logp, *k), adv[k]) for k in keys])
  errors = []
  for k in keys:
    near = old[k] + min(max(value[k] - old[k], -0.2), 0.2)
    errors.append(max((value[k] - target[k]) ** 2, (near - target[k]) ** 2))
  return policy + 0.5 * mean(errors) - 0.01 * mean([p.fields["entropy"][k] for k in keys])


def dpo(p, logp, frozen, value, beta=0.1, smooth=0.0, ipo=False, per_token=False):
  losses = []
  for i in range(len(p.reward)):
    if {(i, 0), (i, 1)} <= set(rollouts(p)):
      gain = [
        sum(logp[i, j, t] - p.fields["logp_ref"][i, j, t] for t in steps(p, i, j)) for j in (0, 1)
      ]
      if per_token:
        gain = [x / len(steps(p, i, j)) for j, x in enumerate(gain)]
      best = 0 if p.reward[i, 0] > p.reward[i, 1] else 1
      h = gain[best] - gain[1 - best]
      right, wrong = math.log(1 + math.exp(-beta * h)), math.log(1 + math.exp(beta * h))
      losses.append((h - 1 / (2 * beta)) ** 2 if ipo else (1 - smooth) * right + smooth * wrong)
  return mean(losses)


def using(f, **kwargs):
  return lambda *args: f(*args, **kwargs)


ENTROPY = {"beta_entropy": 0.01}
CASES = [
  ("grpo", {}, grpo),
  ("grpo", {"ddof": 0, "dual_clip": 1.3}, using(grpo, ddof=0, dual=1.3)),
  ("grpo", {"scale": "batch"}, using(grpo, scale="batch")),
  ("grpo", {"scale": "none", "drop_truncated": True}, using(grpo, scale="none", drop=True)),
  *[
    ("grpo", {"beta_kl": 0.04, "kl": k, **ENTROPY}, kl_term(k))
    for k in ("k1", "k2", "k3", "k1+", "k3+", "rk3")
  ],
  ("dr_grpo", {"max_tokens": 11}, dr_grpo),
  ("dapo", {"max_tokens": 6, "overlong_cache": 4}, dapo),
  ("gspo", {"eps_low": 0.05, "eps_high": 0.1}, gspo),
  ("gspo", {"eps_low": 0.05, "eps_high": 0.1, "form": "token"}, using(gspo, token=True)),
  ("cispo", {"eps_high": 0.3}, cispo),
  ("cispo", {"eps_high": 0.3, "eps_low": 0.2}, using(cispo, low=0.8)),
  ("reinforce", {}, reinforce),
  ("reinforce", {"baseline": "none"}, using(reinforce, baseline=False)),
  ("rloo", {}, rloo),
  ("rloo", {"beta_kl": 0.2}, using(rloo, beta=0.2)),
  ("sft", {}, sft),
  ("ppo", {"gamma": 0.9, "lam": 0.8, "beta_kl": 0.1, **ENTROPY}, ppo),
  ("ppo", {"whiten": False, **ENTROPY}, using(ppo, gamma=1, lam=0.95, beta=0, whiten=False)),
  ("dpo", {}, dpo),
  ("dpo", {"beta": 0.5, "label_smoothing": 0.2}, using(dpo, beta=0.5, smooth=0.2)),
  ("dpo", {"kind": "ipo", "beta": 0.2}, using(dpo, beta=0.2, ipo=True, per_token=True)),
  ("dpo", {"kind": "ipo", "per_token": False}, using(dpo, ipo=True)),
]
LABELS = ["-".join([n, *(f"{k}={v}" for k, v in kw.items())]) for n, kw, _ in CASES]


def difference(f, x, h=1e-5):
  out = np.zeros_like(x)
  for at in np.ndindex(*x.shape):
    up, down = x.copy(), x.copy()
    up[at] += h
    down[at] -= h
    out[at] = (f(up) - f(down)) / (2 * h)
  return out


@pytest.mark.parametrize(("name", "kwargs", "loop"), CASES, ids=LABELS)
def test_value_and_gradient_equal_the_formula_in_float64_loops(name, kwargs, loop):
  for seed in (0, 1):
    p = problems.ragged(seed, n=4, g=2 if name == "dpo" else 4, t=6, dead=0.2, holes=0.15)
    q = problems.ragged(
      seed, n=4, g=2 if name == "dpo" else 4, t=6, dead=0.2, holes=0.15, dtype=np.float64
    )
    loss, _, grad, value_grad, _ = problems.run(problems.get(name, **kwargs), p)
    logp, value = q.fields["logp"], q.fields["value"]
    np.testing.assert_allclose(loss, loop(q, logp, logp, value), rtol=2e-5, atol=2e-6)
    expected = difference(lambda x: loop(q, x, logp, value), logp)  # noqa: B023
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(np.where(q.trained, grad, 0), expected, rtol=2e-4, atol=2e-6)
    if value_grad is not None:
      expected = difference(lambda x: loop(q, logp, logp, x), value)  # noqa: B023
      np.testing.assert_allclose(np.where(q.trained, value_grad, 0), expected, rtol=2e-4, atol=2e-6)


def test_trap_19_the_entropy_bonus_is_the_mean_over_all_trained_tokens_of_the_batch():
  p = problems.ragged(3, dead=0.2)
  plain, bonus = (
    problems.run(problems.get("grpo", aggregate="token_mean", beta_entropy=b), p)[0] for b in (0, 1)
  )
  used = p.trained & p.alive[..., None]
  np.testing.assert_allclose(plain - bonus, p.fields["entropy"][used].mean(), rtol=1e-5)
