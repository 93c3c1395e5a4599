"""Rank-GRPO against GRPO on ranked lists."""
