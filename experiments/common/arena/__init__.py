"""Methods x token worlds x seeds on the fused loop: `python -m experiments.compare`."""
