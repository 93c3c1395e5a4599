"""SPO's segment values, by chains and by trees, against GRPO at equal tokens."""
