"""Learning histories kept as a tensorflow-datasets data set (array_record), without TensorFlow."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from grpo_jax.core.transitions import Histories, Transitions
from grpo_jax.data.tfds_source import open_builder, prepared, tensorflow_datasets
from grpo_jax.errors import UserError
from grpo_jax.names import one_of

_FIELDS = {"task_id", "learner", "task", "steps"}


def write(data_dir: str, splits: Mapping[str, Histories]) -> str:
  """Writes the splits below `data_dir`; returns the folder that `read` takes.

  All splits have the shapes of one history in common. UserError where they do not, or where the
  folder holds a data set already.
  """
  shapes = {name: [x.shape[2:] for x in vars(h.steps).values()] for name, h in splits.items()}
  if len({str(s) for s in shapes.values()}) != 1:
    raise UserError(f"splits: one shape for all histories is needed, not {shapes}")
  tensorflow_datasets()
  from grpo_jax.data.tfds_histories.tfds_histories_dataset_builder import Builder

  return prepared(Builder(splits=splits, data_dir=str(data_dir), file_format="array_record"))


def read(path: str, split: str = "train") -> Histories:
  """All histories of a split, numpy arrays with the values and types that were written.

  UserError for a folder or a split that is not there, and for a data set of another kind.
  """
  builder: Any = open_builder(path)
  one_of("data.histories.split", split, builder.info.splits)
  if set(builder.info.features) != _FIELDS:
    raise UserError(f"data.histories.path: {path!r} holds no histories; write them with `write`")
  stored = builder.as_data_source(split)
  rows = sorted(stored, key=lambda row: (int(row["task_id"]), int(row["learner"])))
  learners = 1 + int(rows[-1]["learner"])

  def stack(group: str, name: str, every: int = 1) -> np.ndarray:
    dtype = builder.info.features[group][name].np_dtype  # a lone number comes back as Python's
    return np.stack([np.asarray(row[group][name], dtype) for row in rows[::every]])

  fold = lambda x: x.reshape(-1, learners, *x.shape[1:])
  steps = {name: fold(stack("steps", name)) for name in rows[0]["steps"]}
  tasks = {name: stack("task", name, learners) for name in rows[0]["task"]}
  return Histories(tasks=tasks, steps=Transitions(**steps))  # pyright: ignore
