"""The Python of the PyTorch environment, for tests marked `oracle`."""

import os
from pathlib import Path

import pytest


@pytest.fixture
def oracle_python() -> str:
  python = os.environ.get("TRL_PYTHON", ".venvs/trl/bin/python")
  if not Path(python).is_file():
    pytest.skip("no PyTorch environment: `make oracle-env`, or set TRL_PYTHON")
  return python
