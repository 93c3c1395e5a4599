"""Loaded models against transformers: logits of tiny random families and of the real SmolLM2."""

import dataclasses
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from grpo_jax.models import decoder, embedded, loading, safetensors_file

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = ("llama_tied", "llama_untied", "llama3_rope", "qwen2", "qwen3")


def masked_logits(config, params, tokens, lengths) -> np.ndarray:
  out = np.asarray(decoder.logits(config, params, tokens, lengths))
  return out * (np.arange(tokens.shape[1])[None, :, None] < lengths[:, None, None])


def reload(python: str, *folders: Path) -> None:
  script = Path(__file__).with_name("make_goldens.py")
  done = subprocess.run([python, script, "reload", *folders], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers_on_ragged_rows_of_a_random_model(family):
  config, params = safetensors_file.load(GOLDEN / family)
  golden = np.load(GOLDEN / family / "golden.npz")
  ours = masked_logits(config, params, golden["tokens"], golden["lengths"])
  assert np.abs(golden["logits"]).max() > 1.0
  np.testing.assert_allclose(ours, golden["logits"], atol=1e-4, rtol=0)


def test_rope_scaling_changes_the_logits_of_its_family():
  """Else the parity above would not show that the scaling is read."""
  config, params = safetensors_file.load(GOLDEN / "llama3_rope")
  golden = np.load(GOLDEN / "llama3_rope" / "golden.npz")
  for changes in ({"rope_scaling": None}, {"rope_theta": 1e4}):
    plain = dataclasses.replace(config, **changes)
    ours = masked_logits(plain, params, golden["tokens"], golden["lengths"])
    assert np.abs(ours - golden["logits"]).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_export_then_load_gives_the_same_model(family, dtype, tmp_path):
  config, params = safetensors_file.load(GOLDEN / family)
  folder = safetensors_file.save(tmp_path / "out", config, params, dtype=dtype)
  again_config, again = safetensors_file.load(folder)
  assert again_config == config
  assert again["layers"].keys() == params["layers"].keys() and again.keys() == params.keys()
  step = {"float32": 0.0, "bfloat16": 2.0**-8, "float16": 2.0**-11}[dtype]
  for name, value in params["layers"].items():
    np.testing.assert_allclose(again["layers"][name], value, rtol=step, atol=1e-7)
  np.testing.assert_allclose(again["embed"], params["embed"], rtol=step, atol=1e-7)


@pytest.mark.oracle
def test_transformers_loads_an_export_of_every_family_to_the_same_logits(tmp_path, oracle_python):
  folders = {family: tmp_path / family for family in FAMILIES}
  for family, folder in folders.items():
    safetensors_file.save(folder, *safetensors_file.load(GOLDEN / family))
  reload(oracle_python, *folders.values())
  for family, folder in folders.items():
    theirs, golden = np.load(folder / "reloaded.npz"), np.load(GOLDEN / family / "golden.npz")
    np.testing.assert_array_equal(theirs["tokens"], golden["tokens"])
    np.testing.assert_allclose(theirs["logits"], golden["logits"], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def smollm2():
  if not (embedded.cache_folder() / embedded.FILE).is_file():
    pytest.skip("the embedded model is not in the cache: python -m grpo_jax.models.embedded")
  return loading.load("smollm2")


@pytest.mark.slow
def test_smollm2_logits_equal_transformers_reading_the_same_gguf(smollm2):
  config, params, _ = smollm2
  golden = np.load(GOLDEN / "smollm2_logits.npz")
  tokens = golden["tokens"]
  ours = np.asarray(decoder.logits(config, params, tokens, np.array([64, 64], np.int32)))
  for ids, values in (("top", "top_logits"), ("some", "some_logits")):
    index = golden[ids].astype(np.int64)
    index = np.broadcast_to(index, (*tokens.shape, index.shape[-1]))
    diff = np.abs(np.take_along_axis(ours, index, -1) - golden[values])
    assert diff.max() < 1e-3, (ids, diff.max())
  wide = ours.astype(np.float64)
  peak = wide.max(-1, keepdims=True)
  log_z = np.log(np.exp(wide - peak).sum(-1)) + peak[..., 0]
  assert np.abs(log_z - golden["log_z"]).max() < 1e-3
  np.testing.assert_array_equal(ours.argmax(-1), golden["top"][..., 0])


@pytest.mark.slow
@pytest.mark.oracle
def test_transformers_loads_the_exported_smollm2_with_its_tokenizer(
  smollm2, tmp_path, oracle_python
):
  config, params, tokenizer = smollm2
  folder = safetensors_file.save(tmp_path / "out", config, params, tokenizer, dtype="bfloat16")
  reload(oracle_python, folder)
  theirs = np.load(folder / "reloaded.npz")
  _, rounded, again = loading.load(str(folder))
  ours = masked_logits(config, rounded, theirs["tokens"], theirs["lengths"])
  assert np.abs(ours - theirs["logits"]).max() < 1e-3
  texts = json.loads((GOLDEN / "texts.json").read_text())
  ids = [tokenizer.encode(text) for text in texts]
  assert json.loads(str(theirs["ids"])) == ids == [again.encode(text) for text in texts]
  assert str(theirs["eos"]) == str(tokenizer.eos_ids[0]) and again.special == tokenizer.special
  assert str(theirs["chat"]) == tokenizer.chat([{"role": "user", "content": "Hi"}])
