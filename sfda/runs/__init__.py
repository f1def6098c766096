"""Runs: what they are made of, and what they leave."""
