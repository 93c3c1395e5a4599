"""Algorithms whose memory is a table: bandit learners, offline rules, Q-learning.

`grpo_jax.tabular.bandits` has all that speaks of bandits, `grpo_jax.tabular.q_learning` the rest.
"""
