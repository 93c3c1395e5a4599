"""Problems written through tensorflow-datasets come back equal, without TensorFlow."""

import pathlib
import sys

import numpy as np
import pytest

from grpo_jax.data import load, tfds_source
from grpo_jax.data.problem import Problem
from grpo_jax.data.stream import PromptStream
from grpo_jax.errors import UserError


def problems(n, start=0):
  meta = {"source": "é", "share": 0.5, "entry": {"grid": [[1, 2], [3, 4]], "none": None}}
  return [Problem(i, f"p{start + i} =", f"q{start + i}", str(i), meta) for i in range(n)]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
  pytest.importorskip("tensorflow_datasets")
  rows = [*problems(30), Problem(30, "open", "open", None, {"source": "é"})]
  splits = {"train": rows, "heldout": problems(5, start=100)}
  return tfds_source.write(str(tmp_path_factory.mktemp("tfds")), splits)


def test_round_trip_is_equal_in_order_and_needs_no_tensorflow(path):
  assert tfds_source.read(path)[:30] == problems(30)
  assert tfds_source.read(path)[30].answer is None
  assert tfds_source.split_names(path) == ["heldout", "train"]
  assert "tensorflow" not in sys.modules
  assert list(pathlib.Path(path).glob("*.array_record-*"))


def test_a_run_reads_it_and_its_position_resumes_through_grain(path):
  data = load({"source": "tfds", "path": path, "heldout_split": "heldout"})
  assert [p.question for p in data.heldout] == [f"q{100 + i}" for i in range(5)]
  assert len(data.train) == 31 and data.order == "grain"
  one = PromptStream(data.train, 0, order=data.order)
  one.next(20)
  two = PromptStream(data.train, 0, order=data.order)
  two.restore(one.state())
  assert [one.next(7) for _ in range(9)] == [two.next(7) for _ in range(9)]


def test_without_a_heldout_split_one_is_cut_by_question(path):
  data = load({"source": "tfds", "path": path, "heldout": 10})
  assert len(data.heldout) == 10 and len(data.train) == 21


def test_any_prepared_data_set_with_text_features_is_read(tmp_path):
  import tensorflow_datasets as tfds

  class Foreign(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
      text = tfds.features.Text()
      features = {"ask": text, "reply": text, "grade": tfds.features.Scalar(np.int32)}
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
      return {"train": ((i, {"ask": f"q{i}", "reply": "é", "grade": i}) for i in range(3))}

    def _generate_examples(self):
      raise NotImplementedError

  tfds.disable_progress_bar()
  builder = Foreign(data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare()
  rows = tfds_source.read(str(builder.data_path), prompt_field="ask", answer_field="reply")
  assert sorted((p.prompt, p.answer, p.meta["grade"]) for p in rows) == [
    ("q0", "é", 0), ("q1", "é", 1), ("q2", "é", 2)
  ]  # fmt: skip
  with pytest.raises(UserError, match='train\\[0\\]: field "prompt" is missing'):
    tfds_source.read(str(builder.data_path))


def test_bad_input_is_one_clear_line(path, tmp_path):
  with pytest.raises(UserError, match="did you mean 'train'"):
    tfds_source.read(path, "trian")
  with pytest.raises(UserError, match="no prepared tfds data set"):
    tfds_source.read(str(tmp_path))
  with pytest.raises(UserError, match="does not survive JSON"):
    tfds_source.write(str(tmp_path), {"train": [Problem(0, "a", "a", "b", {"m": {1: 2}})]})
  with pytest.raises(UserError, match="exists; remove it"):
    tfds_source.write(str(pathlib.Path(path).parents[1]), {"train": problems(2)})
