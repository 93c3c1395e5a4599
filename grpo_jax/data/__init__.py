"""Prompts from reasoning-gym, JSONL files and tensorflow-datasets: `load(config)`."""

from grpo_jax.data.loader import load
from grpo_jax.data.problem import DataSet, Problem

__all__ = ["DataSet", "Problem", "load"]
