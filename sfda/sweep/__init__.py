"""Hyper-parameter sweeps from W&B's sweep files, run here."""
