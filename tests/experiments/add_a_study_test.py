"""The study of docs/add_a_study.md is one."""

import re
import types
from pathlib import Path

from experiments.common import dry, study

PAGE = (Path(__file__).parents[2] / "docs/add_a_study.md").read_text(encoding="utf-8")


def test_the_example_is_a_whole_study_that_reads_what_its_arms_have():
  module = types.ModuleType("example")
  exec(re.findall(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)[0], vars(module))
  for variant in ("", "debug", "long"):
    c = module.get_config(variant)
    study.check(c, module)
  dry.check(c, module, dry.first_trials(c))


def test_every_file_that_the_page_names_exists():
  for name in set(re.findall(r"`(experiments/[\w/]+\.py)`", PAGE)) - {"experiments/SLUG/claim.py"}:
    assert (Path(__file__).parents[2] / name).is_file(), name
