"""Kimi k1.5's mirror descent, length reward and sampling by success."""
