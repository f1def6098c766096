"""Experiments, runs, and tables of several runs; torch is imported by `sfda.runs.checkpoints` alone."""
