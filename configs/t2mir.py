"""T2MIR-DPT (card 04): token-wise and task-wise experts in an in-context learner of Darkroom.

  python -m experiments.train --config=configs/t2mir.py                all of it
  python -m experiments.train --config=configs/t2mir.py:no_contrast    without the contrastive loss
  python -m experiments.train --config=configs/t2mir.py:token          token-wise experts alone
  python -m experiments.train --config=configs/t2mir.py:task           task-wise experts alone
  python -m experiments.train --config=configs/t2mir.py:dense          one layer of the same size
  python -m experiments.train --config=configs/t2mir.py:debug          under a minute

The arms differ in the last layer's feed-forward part and its losses only. `:paper` has the sizes of
the released configs where the card names them.
"""

from configs import common, dpt

ARMS = {
  "full": {"experts": 6, "task_experts": 8},
  "no_contrast": {"experts": 6, "task_experts": 8},
  "token": {"experts": 6, "task_experts": 0},
  "task": {"experts": 0, "task_experts": 8},
  "dense": {"experts": 6, "task_experts": 8, "dense": True},
}


def get_config(variant: str = ""):
  parts = common.check_variant(variant, (*ARMS, "debug", "paper"))
  arm = next((p for p in parts if p in ARMS), "full")
  c = dpt.base()
  c.method = "t2mir"
  # Weights of T2MIR-DPT on Darkroom.
  c.method_args = {"balance": 0.01, "contrast": 0.0 if arm == "no_contrast" else 0.001}
  c.data = {"family": "darkroom", "n": 7, "horizon": 20, "steps": 40}
  c.tokens, c.pairs, c.batch, c.steps = "split", True, 32, 3000
  c.model.update(hidden=64, layers=3, heads=4)
  c.moe.update(ARMS[arm])
  c.optimizer.update(lr=1e-3, warmup=100, clip_norm=1.0)
  c.eval.update(greedy=True, episodes=6)
  if "paper" in parts:
    c.data.update(n=10, horizon=100, steps=100)
    c.model.update(hidden=128, layers=4, heads=8, wide=False)
    c.optimizer.update(lr=3e-4, warmup=10_000)
    c.steps, c.eval.episodes = 100_000, 40
    c.eval.every, c.checkpoint.every = 10_000, 10_000
  if "debug" in parts:
    c.steps, c.seeds, c.batch = 4, 2, 4
    c.data.update(n=3, horizon=4, steps=4)
    c.model.update(hidden=8, layers=1, heads=2)
    c.moe.hidden = 8
    c.eval.update(every=2, episodes=2)
    c.checkpoint.every, c.log.every = 2, 2
  return c
