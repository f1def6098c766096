"""Pseudo-labels: which pixels get one, how they are made in one pass, and where they are kept."""
