"""GTPO's protection of shared tokens against GRPO."""
