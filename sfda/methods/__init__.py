"""Adaptation methods: one file each, named like its config."""
