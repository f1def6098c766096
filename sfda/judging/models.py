"""Methods as they are judged, and the source model that one started from."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from sfda.judging.evidence import Model
from sfda.methods.kinds.method import Method
from sfda.methods.source_only import SourceOnly


def model_of(method: Method, over_scored: Callable[[Tensor], Tensor]) -> Model:
    """A method whose probabilities (B, C, H, W) are brought to the scored classes, (B, C_scored, H, W)."""
    return Model(
        lambda images, size: over_scored(method.predict_probabilities(images, size)),
        lambda images, size: over_scored(method.single_view_probabilities(images, size)),
    )


def source_method(options: Mapping[str, Any], num_classes: int) -> SourceOnly:
    """The model that a method with these options started from, in eval mode.

    Raises:
        UserError: its checkpoint cannot be read, or holds another network.
    """
    method = SourceOnly(
        network=options["network"],
        num_classes=num_classes,
        network_options=options.get("network_options"),
        source_checkpoint=options["source_checkpoint"],
    )
    method.initialise_from_source()
    return method.eval()
