"""Writes learning histories as array_record through tensorflow-datasets, without TensorFlow."""

from collections.abc import Mapping

import jax
import numpy as np
import tensorflow_datasets as tfds

from grpo_jax.core.transitions import Histories


class Builder(tfds.core.GeneratorBasedBuilder):
  """`Builder(splits={"train": histories}, data_dir=...)`; use `tfds_history_source.write`.

  A row is one learner's history: {"task_id", "learner", "task": {name: one leaf of the task},
  "steps": {"state", "action", "next_state", "reward"}}, the arrays as they are.
  """

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, splits: Mapping[str, Histories] | None = None, **kwargs):
    self._splits = {name: jax.tree.map(np.asarray, h) for name, h in (splits or {}).items()}
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    one = next(iter(self._splits.values()))
    number = tfds.features.Scalar(np.int64)
    tensor = lambda x, lead: tfds.features.Tensor(shape=x.shape[lead:], dtype=x.dtype)
    steps = {name: tensor(x, 2) for name, x in vars(one.steps).items()}
    task = {name: tensor(x, 1) for name, x in one.tasks.items()}
    return tfds.core.DatasetInfo(
      builder=self,
      description="Learning histories: a row is what one learner lived through on one task.",
      features=tfds.features.FeaturesDict(
        {"task_id": number, "learner": number, "task": task, "steps": steps}
      ),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {name: self._generate_examples(h) for name, h in self._splits.items()}

  def _generate_examples(self, histories: Histories):
    tasks, learners = histories.steps.reward.shape[:2]
    for i in range(tasks):
      task = {name: x[i] for name, x in histories.tasks.items()}
      for j in range(learners):
        steps = {name: x[i, j] for name, x in vars(histories.steps).items()}
        yield i * learners + j, {"task_id": i, "learner": j, "task": task, "steps": steps}
