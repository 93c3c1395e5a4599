"""`load(config, render) -> DataSet`: the one entry point of a run to its data."""

from collections.abc import Callable, Mapping
from typing import Any

from grpo_jax.data import jsonl, prompts, reasoning_gym_task, tfds_source
from grpo_jax.data.problem import DataSet, Problem, numbered, split
from grpo_jax.errors import UserError
from grpo_jax.names import check_keys, one_of

_COMMON = {"source": None, "heldout": 256, "seed": 0, "prompt": None}
_FIELDS = {"needs": ("answer",), "prompt_field": "prompt", "answer_field": "answer"}


def _apart(train: list[Problem], held: list[Problem], heldout: int) -> tuple[list, list, int]:
  """Separate held-out data: cut to `heldout`, and its questions taken out of the training set."""
  distinct = list({p.question: p for p in held}.values())
  held = distinct if heldout >= len(distinct) else split(distinct, heldout)[1]
  questions = {p.question for p in held}
  kept = [p for p in train if p.question not in questions]
  if not kept:
    raise UserError("data.heldout_path: it holds every training question; give other problems")
  return kept, held, len(train) - len(kept)


def _reasoning_gym(config: dict, spare: int) -> tuple[list, list, int]:
  mix, size, seed = config["mix"], config["size"], config["seed"]
  return *reasoning_gym_task.make_problems(mix, size, config["heldout"], seed, spare), 0


def _jsonl(config: dict, spare: int) -> tuple[list, list, int]:
  del spare
  if not config["path"]:
    raise UserError("data.path: missing; give the JSONL file")
  fields = {key: config[key] for key in _FIELDS}
  rows = jsonl.read(config["path"], **fields)
  if config["heldout_path"]:
    return _apart(rows, jsonl.read(config["heldout_path"], **fields), config["heldout"])
  return *split(rows, config["heldout"]), 0


def _tfds(config: dict, spare: int) -> tuple[list, list, int]:
  del spare
  if not config["path"]:
    raise UserError("data.path: missing; give the folder of the tfds data set's version")
  fields = {key: config[key] for key in _FIELDS}
  rows = tfds_source.read(config["path"], config["split"], **fields)
  if config["heldout_split"]:
    held = tfds_source.read(config["path"], config["heldout_split"], **fields)
    return _apart(rows, held, config["heldout"])
  return *split(rows, config["heldout"]), 0


# source -> reader, its own keys with defaults, what shuffles
_SOURCES = {
  "reasoning_gym": (_reasoning_gym, {"mix": (), "size": 2000}, "numpy"),
  "jsonl": (_jsonl, {"path": None, "heldout_path": None, **_FIELDS}, "numpy"),
  "tfds": (_tfds, {"path": None, "split": "train", "heldout_split": None, **_FIELDS}, "grain"),
}


def load(config: dict, render: Callable[[list[dict]], str] | None = None) -> DataSet:
  """Problems of `config["source"]` with prompts built, deterministic from `config["seed"]`.

    {"source": "reasoning_gym", "mix": [{"name", "params", "weight", "label"}, ...], "size": 2000}
    {"source": "jsonl", "path", "heldout_path", "needs", "prompt_field", "answer_field"}
    {"source": "tfds", "path", "split", "heldout_split", "needs", ...}

  and for every source "heldout" (a count), "seed", and "prompt" (see `prompts.PromptSpec`).
  UserError for unknown keys and names, with the nearest known one.
  """
  config = _plain(config)
  source = config.get("source", "reasoning_gym")
  one_of("data.source", source, _SOURCES)
  read, defaults, order = _SOURCES[source]
  check_keys("data", config, _COMMON.keys() | defaults.keys())
  config = _COMMON | defaults | config
  for field in ("size", "heldout"):
    if field in config and (not isinstance(config[field], int) or config[field] < 0):
      raise UserError(f"data.{field}: expected a count of problems, got {config[field]!r}")
  spec = prompts.PromptSpec.of(config["prompt"])
  train, held, dropped = read(config, spec.shots)
  train, same = _without_held(train, held, spec)
  shots, train = prompts.draw_shots(train, spec.shots, config["seed"])
  train = numbered(prompts.build(spec, train, shots, render))
  held = numbered(prompts.build(spec, held, shots, render), start=len(train))
  return DataSet(
    train=train,
    heldout=held,
    scorer_spec=_scorer(train, spec),
    stop=spec.stop_text,
    tasks=tuple({str(p.meta["task"]): p.meta["task"] for p in train if "task" in p.meta}.values()),
    shots=tuple(shots),
    dropped=dropped + same,
    order=order,
  )


def _without_held(train: list[Problem], held: list[Problem], spec) -> tuple[list[Problem], int]:
  """(training problems whose prompt is no held-out one's, how many were left out): different
  questions may read the same once `prompt.question_regex` has cut them."""
  seen = {prompts.kept(spec, p.question) for p in held}
  kept = [p for p in train if prompts.kept(spec, p.question) not in seen]
  if train and not kept:
    raise UserError(
      "data.prompt.question_regex: it leaves no training prompt that is not held out; keep more of "
      "the question, or lower data.heldout"
    )
  return kept, len(train) - len(kept)


def _plain(value: Any) -> Any:
  """Mappings of any kind, a ConfigDict for one, as dicts, all the way down."""
  if isinstance(value, Mapping) or hasattr(value, "to_dict"):
    return {k: _plain(v) for k, v in value.items()}
  return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def _scorer(train: list[Problem], spec: prompts.PromptSpec) -> list[dict]:
  name = "reasoning_gym" if all("task" in p.meta for p in train) else "math"
  extract = "first_line" if spec.style == "few_shot" else "auto"
  return [{"name": name, "weight": 1.0, "args": {"extract": extract}}]
