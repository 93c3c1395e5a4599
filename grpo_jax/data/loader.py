"""`load(config, render) -> DataSet`: the one entry point of a run to its data."""

from collections.abc import Callable

from grpo_jax.data import prompts, reasoning_gym_task
from grpo_jax.data.problem import DataSet, numbered
from grpo_jax.errors import UserError
from grpo_jax.lookup import check_keys, unknown

_COMMON = {"source": None, "heldout": 256, "seed": 0, "prompt": None}


def _reasoning_gym(config: dict, spare: int):
  train, held = reasoning_gym_task.generate(
    config["mix"], config["size"], config["heldout"], config["seed"], spare
  )
  tasks = tuple({str(p.meta["task"]): p.meta["task"] for p in train}.values())
  return train, held, tasks, 0


_SOURCES = {
  "reasoning_gym": (_reasoning_gym, {"mix": (), "size": 2000}, "reasoning_gym"),
}


def load(config: dict, render: Callable[[list[dict]], str] | None = None) -> DataSet:
  """Problems of `config["source"]` with prompts built, deterministic from `config["seed"]`.

    {"source": "reasoning_gym", "mix": [{"name", "params", "weight", "label"}, ...], "size": 2000}

  and for every source "heldout" (a count), "seed", and "prompt" (see `prompts.PromptSpec`).
  UserError for unknown keys and names, with the nearest known one.
  """
  config = dict(config)
  source = config.get("source", "reasoning_gym")
  if source not in _SOURCES:
    raise unknown("data.source", source, _SOURCES)
  read, defaults, scorer = _SOURCES[source]
  check_keys("data", config, _COMMON.keys() | defaults.keys())
  config = _COMMON | defaults | config
  for field in ("size", "heldout"):
    if field in config and (not isinstance(config[field], int) or config[field] < 0):
      raise UserError(f"data.{field}: expected a count of problems, got {config[field]!r}")
  spec = prompts.PromptSpec.of(config["prompt"])
  train, held, tasks, dropped = read(config, spec.shots)
  shots, train = prompts.draw_shots(train, spec.shots, config["seed"])
  train = numbered(prompts.build(spec, train, shots, render))
  held = numbered(prompts.build(spec, held, shots, render), start=len(train))
  return DataSet(
    train=train,
    heldout=held,
    scorer_spec=_scorer(scorer, spec),
    stop=spec.stop_text,
    tasks=tasks,
    shots=tuple(shots),
    dropped=dropped,
  )


def _scorer(name: str, spec: prompts.PromptSpec) -> list[dict]:
  extract = "first_line" if spec.style == "few_shot" else "auto"
  return [{"name": name, "weight": 1.0, "args": {"extract": extract}}]
