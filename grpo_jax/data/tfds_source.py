"""Problems kept as a tensorflow-datasets data set (array_record), read through grain.

`write` makes one from any problems; `read` takes it back, or any other prepared data set that has
a text feature for the prompt and one for the answer. Neither imports TensorFlow.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from grpo_jax.data.jsonl import problem_of
from grpo_jax.data.problem import Problem
from grpo_jax.errors import UserError
from grpo_jax.names import one_of

_OURS = {"id", "prompt", "question", "answer_json", "meta"}


def tensorflow_datasets():
  """The package, without its progress bar; UserError where it is missing."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise UserError("data.source: 'tfds' needs pip install 'grpo-jax[data]'") from e
  tfds.disable_progress_bar()
  return tfds


def _lists(value: Any) -> Any:
  """JSON has no tuples: they come back as lists."""
  if isinstance(value, dict):
    return {k: _lists(v) for k, v in value.items()}
  return [_lists(v) for v in value] if isinstance(value, list | tuple) else value


def _check_meta(p: Problem) -> None:
  try:
    same = json.loads(json.dumps(p.meta)) == _lists(p.meta)
  except (TypeError, ValueError):
    same = False
  if not same:
    raise UserError(
      f"meta of problem {p.id} ({p.question[:40]!r}): does not survive JSON; "
      "use strings as keys and plain values"
    )


def write(data_dir: str, splits: Mapping[str, Sequence[Problem]]) -> str:
  """Writes the splits below `data_dir`; returns the folder that `read` takes.

  UserError where `meta` would not come back equal (integer keys, objects), or where the folder
  holds a data set already.
  """
  for rows in splits.values():
    for p in rows:
      _check_meta(p)
  tensorflow_datasets()
  from grpo_jax.data.tfds_prompts.tfds_prompts_dataset_builder import Builder

  return prepared(Builder(splits=splits, data_dir=str(data_dir), file_format="array_record"))


def prepared(builder: Any) -> str:
  """The folder that the builder has written. UserError where it holds a data set already."""
  if pathlib.Path(builder.data_path).exists():
    raise UserError(f"data_dir: {str(builder.data_path)!r} exists; remove it or give another")
  with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
    builder.download_and_prepare()
  return str(builder.data_path)


def open_builder(path: str) -> Any:
  """The builder of a prepared data set. UserError for another folder."""
  tfds = tensorflow_datasets()
  if not (pathlib.Path(path) / "dataset_info.json").is_file():
    raise UserError(
      f"data.path: {path!r} is no prepared tfds data set (no dataset_info.json); "
      "give the folder of its version, e.g. .../my_prompts/1.0.0"
    )
  return tfds.builder_from_directory(str(path))


def split_names(path: str) -> list[str]:
  return sorted(open_builder(path).info.splits)


def read(
  path: str,
  split: str = "train",
  needs: Sequence[str] = ("answer",),
  prompt_field: str = "prompt",
  answer_field: str = "answer",
) -> list[Problem]:
  """All problems of a split, in the order they were written (foreign data sets: as stored)."""
  import grain

  builder: Any = open_builder(path)
  one_of("data.split", split, builder.info.splits)
  stored = builder.as_data_source(split)
  rows: Any = grain.MapDataset.source(stored).map(_plain)
  if set(builder.info.features) == _OURS:
    return [_ours(r) for r in sorted((rows[i] for i in range(len(rows))), key=lambda r: r["id"])]
  return [
    problem_of(rows[i], f"{path}:{split}[{i}]", needs, prompt_field, answer_field)
    for i in range(len(rows))
  ]


def _plain(row: dict) -> dict:
  """bytes -> str, numpy -> Python numbers."""
  out = {}
  for key, value in row.items():
    if isinstance(value, bytes):
      value = value.decode("utf-8")
    elif isinstance(value, np.generic | np.ndarray):
      value = value.tolist()
    out[key] = value
  return out


def _ours(row: dict) -> Problem:
  answer = json.loads(row["answer_json"])
  return Problem(row["id"], row["prompt"], row["question"], answer, json.loads(row["meta"]))
