"""SPO's one completion a prompt and its tracker against groups."""
