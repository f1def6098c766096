"""Segmentation networks, built from one string."""
