"""Quick start: SmolLM2-135M learns to add on two CPU cores.

A pretrained 135M model, sums of two numbers with one and two digits from reasoning-gym, a prompt of
8 solved examples that the 16 completions of a problem share, plain GRPO, one update a batch.

  make quickstart
  python -m experiments.train --config=configs/quickstart.py --workdir=runs/quickstart
  python -m experiments.train --config=configs/quickstart.py:debug      (under a minute)

paper: none of the list (GRPO, arXiv:2402.03300)
cost: 7 min 38 s of two cores, about 1.2 GB
result: docs/quickstart.png: held-out accuracy up by 32 points
"""

from configs import common


def get_config(variant: str = ""):
  c = common.language_model()
  c.steps = 48
  c.data = {
    "source": "reasoning_gym",
    "mix": tuple(
      {
        "name": "chain_sum",
        "label": f"{digits}-digit",
        "weight": 1,
        "params": {"min_terms": 2, "max_terms": 2, "min_digits": digits, "max_digits": digits},
      }
      for digits in (1, 2)
    ),
    "size": 2000,
    "heldout": 256,
    "seed": 17,  # of the split and the examples: theirs show both signs and a carry
    "prompt": {
      "style": "few_shot",
      "shots": 8,
      "question_regex": r"\d[-+\d ]*=",
      "template": "{question} {answer}\n",
    },
  }
  c.method_args.resample = 2  # half of the groups are all right or all wrong: nothing to learn
  c.reward.parts = ("exact",)
  c.batch.prompts = 8
  c.batch.group = 16
  c.sample.max_new_tokens = 8
  c.score.pack = True
  c.optimizer.lr = 1e-5
  c.checkpoint.every = 8
  c.eval.every = 12
  c.log.rollouts_every = 4
  if common.check_variant(variant):
    c.steps = 2
    c.batch.prompts = 2
    c.batch.group = 4
    c.eval.problems = 16
    c.eval.batch = 16
  return c
