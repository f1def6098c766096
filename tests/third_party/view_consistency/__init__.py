"""Agreement between a photometrically augmented view and the plain one."""

from view_consistency.method import ViewConsistency

__all__ = ["ViewConsistency"]
