"""The source model as it is: where every adaptation starts from."""

from sfda.data.needs import Needs
from sfda.methods.kinds.scaled import ScaledMethod


class SourceOnly(ScaledMethod):
    """Validated, never fitted: the source model on the target, at the size at which its checkpoint saw images."""

    needs = Needs()
