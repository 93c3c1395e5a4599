"""T2MIR's claims on Darkroom: python -m experiments.t2mir."""
