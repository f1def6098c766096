"""Metrics: pure functions, and torchmetrics shells over them."""
