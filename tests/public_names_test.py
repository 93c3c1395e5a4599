"""No public name twice with two meanings: what a reader has seen once means the same elsewhere."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent / "grpo_jax"
# Names that a contract gives to many modules, which are told apart by their module.
CONTRACTS = {
  "make": "a module found by its name makes its one thing: a method, a world, a family, a scorer",
  "get": "that thing by its name",
  "names": "the names that `get` knows",
  "Task": "what a family of control problems draws: its unknown",
  "check": "raises UserError where a setting or a combination cannot be had",
  "play": "an episode is played: a plan, an oracle or a posterior on its world",
  "collect": "what a plan samples from a language model",
  "assemble": "what was sampled or read, as Rollouts and Batch",
  "to_batch": "the same inside jit",
  "run": "what a module is there for: a loop from its config, a layer on its input",
  "prepare": "what a loop needs, checked and loaded, before it begins",
  "init": "parameters from a key",
  "apply": "outputs from parameters and inputs",
  "make_forward": "a model as the forward that losses see",
  "open_cache": "an empty cache of keys and values",
  "make_run": "a whole run as one function, to be compiled",
  "make_evaluate": "the part of a run that evaluates",
  "Sizes": "how large a compiled run is: the fields of a config's `plan`",
  "Curves": "what a compiled run gives back: a value an evaluation",
  "load": "a thing from where its name or path says",
  "read": "a file's or a state's content",
  "write": "a file, whole or not at all",
  "Builder": "tensorflow-datasets finds a data set by this class",
  "main": "a module that is a command",
  "learn": "a learner's step or history",
  "step": "one step of a game in a context",
  "Problem": "what is asked, as a text or as tokens",
  "choose": "what is taken, of what may be",
  "draw": "what is drawn at random: numbers, tasks, batches",
  "encode": "a text as token ids",
  "evaluate": "how good a policy is on what is held out",
  "extract_answer": "the answer that a text gives",
  "render": "a page as HTML",
  "split": "what is trained on and what is held out, apart",
  "summarize": "a row of numbers for people",
  "tasks": "all tasks of a family that can be counted",
  "clipped": "PPO's clip: the term of a token, the loss",
}


def public_names(root: Path) -> dict[str, list[str]]:
  """{name: modules} of the classes and functions at the top of every module."""
  found = defaultdict(list)
  for path in sorted(root.rglob("*.py")):
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
      if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_":
        found[node.name].append(str(path.relative_to(root)))
  return found


def test_no_public_name_has_two_meanings():
  twice = {name: where for name, where in public_names(ROOT).items() if len(where) > 1}
  assert {k: v for k, v in twice.items() if k not in CONTRACTS} == {}


def test_the_list_holds_nothing_that_is_not_there_twice():
  twice = {name for name, where in public_names(ROOT).items() if len(where) > 1}
  assert not CONTRACTS.keys() - twice


def test_a_name_given_twice_is_found(tmp_path: Path):
  for module in ("a", "b"):
    (tmp_path / f"{module}.py").write_text("def same(): ...\ndef _own(): ...\n")
  assert public_names(tmp_path) == {"same": ["a.py", "b.py"]}
