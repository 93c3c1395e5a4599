"""IGPO against GRPO on a table that is looked up by calls."""
