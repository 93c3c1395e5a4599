"""The evidence for EVOLvE: `python -m experiments.evolve_bandits`."""
