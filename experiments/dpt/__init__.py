"""The evidence for DPT: `python -m experiments.dpt`."""
