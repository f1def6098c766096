"""The source model as it is: where every adaptation starts from."""

from sfda.data.needs import Needs
from sfda.methods.kinds.method import Method


class SourceOnly(Method):
    """Validated, never fitted: the source model on the target."""

    needs = Needs()
