"""Source-free domain adaptation of semantic segmentation: one protocol for every method."""

__version__ = "0.1.0"
