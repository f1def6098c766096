"""Kinds of method: what they have in common, and what they stand on."""
