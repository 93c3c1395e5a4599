"""Information Gain-based Policy Optimization (paper 53) on SmolLM2-135M: turns of a written answer.

  python -m experiments.train --config=configs/igpo.py
  python -m experiments.train --config=configs/igpo.py:debug      (under a minute)

Sums of three numbers, solved in steps as the examples of the prompt show: each line is a turn, and
what the policy believes of the sum before a line, in the place of the answer, is its information.
No tools are called here: a turn is a line of the same answer. Hyperparameters are the paper's but
for the rate, the quick start's, and the penalty: who does not answer has reward 0.

paper: 53
cost: not measured
result: not measured
"""

from configs import quickstart

SHOWN = """3 + 4 + 2 =
3 + 4 = 7
7 + 2 = 9
answer 9

8 - 1 + 6 =
8 - 1 = 7
7 + 6 = 13
answer 13

5 + 7 + 4 =
5 + 7 = 12
12 + 4 = 16
answer 16

2 + 9 - 8 =
2 + 9 = 11
11 - 8 = 3
answer 3

"""


def get_config(variant: str = ""):
  c = quickstart.get_config(variant)
  c.method = "igpo"
  c.method_args = {"gain": "prob", "penalty": None}
  task = {"min_terms": 3, "max_terms": 3, "min_digits": 1, "max_digits": 1}
  c.data.mix = ({"name": "chain_sum", "params": task},)
  c.data.prompt = {
    "style": "plain",
    "instruction": SHOWN,
    "question_regex": r"\d[-+\d ]*=",
    "stop": "\n\n",
  }
  c.reward.parts = ({"name": "math", "args": {"extract": "last_number"}},)
  c.sample.units, c.sample.cut = 4, "\n"
  c.sample.gold = "\nanswer {answer}"
  c.sample.max_new_tokens = 32
  c.score.pack = False
  return c
