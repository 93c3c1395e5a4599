"""Writes problems as array_record through tensorflow-datasets, without TensorFlow."""

import json
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds

from grpo_jax.data.problem import Problem


class Builder(tfds.core.GeneratorBasedBuilder):
  """`Builder(splits={"train": [...]}, data_dir=...)`; use `tfds_source.write`."""

  VERSION = tfds.core.Version("1.0.0")

  def __init__(self, *, splits: Mapping[str, Sequence[Problem]] | None = None, **kwargs):
    self._splits = dict(splits or {})
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    text = tfds.features.Text
    features = {"id": tfds.features.Scalar(np.int64), "prompt": text(), "question": text()}
    return tfds.core.DatasetInfo(
      builder=self,
      description="Prompts with answers; `meta` is a JSON object, an empty answer_json is none.",
      features=tfds.features.FeaturesDict(features | {"answer_json": text(), "meta": text()}),
    )

  def _split_generators(self, dl_manager):
    del dl_manager  # nothing is downloaded
    return {name: self._generate_examples(rows) for name, rows in self._splits.items()}

  def _generate_examples(self, problems: Sequence[Problem]):
    for i, p in enumerate(problems):
      yield (
        i,
        {
          "id": i,
          "prompt": p.prompt,
          "question": p.question,
          "answer_json": json.dumps(p.answer),
          "meta": json.dumps(p.meta),
        },
      )
