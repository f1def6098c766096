"""Predictions that are no numbers: found where the images still have names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sfda.errors import UserError


def refuse_nan(predictions: Tensor, names: Sequence[str], advice: str) -> None:
    """Stop where a pixel has no prediction; one wait for the device.

    The largest value over the classes is NaN where any is NaN, and infinite where the softmax of logits would be NaN.
    A logit of −∞ is a probability of 0, and passes.

    Args:
        predictions: (B, C, ...) logits or probabilities.
        names: Of the B images; of all that are in them where their number is another (views, mixtures).
        advice: What to do about it.

    Raises:
        UserError: a prediction is NaN or infinite; the images are named.
    """
    smallest, largest = predictions.amax(dim=1).flatten(1).aminmax(dim=1)  # NaN where any is
    finite = (smallest.isfinite() & largest.isfinite()).tolist()
    if all(finite):
        return
    if len(finite) == len(names):
        names = [name for name, fine in zip(names, finite, strict=True) if not fine]
    raise UserError(f"the network predicts NaN or infinity for {', '.join(names)}: {advice}")


@contextmanager
def refusing_nan(network: nn.Module, names: Sequence[str], advice: str) -> Iterator[None]:
    """Look at all logits that `network` gives inside the block; see `refuse_nan`."""

    def look(_module: nn.Module, _inputs: Any, output: Any) -> None:
        refuse_nan(output[0] if isinstance(output, tuple) else output, names, advice)

    handle = network.register_forward_hook(look)
    try:
        yield
    finally:
        handle.remove()
