"""What is known of a network beside its name: what its outputs mean, and what its images look like."""

from typing import Literal

from typing_extensions import TypedDict

OPTION = "--model.init_args.network_options"
"""Where a user says it."""


class NetworkOptions(TypedDict, total=False):
    """Facts about a network; what is not given is what its form says, or what `sfda.networks.probe` finds.

    Layers are named as in `named_modules()`.
    """

    backbone: str
    """The encoder."""
    head: str
    """The last layers, of one input (B, D, h, w), which give the logits."""
    multiple: int
    """Height and width that the network takes are multiples of this; images are padded."""
    align_corners: bool
    """How its logits are brought to other sizes."""
    output: str
    """Key or index of the logits, where the network gives several things."""
    output_kind: Literal["logits", "probabilities"]
    """What the output holds; probabilities need not sum to 1."""
    drop_outputs: list[int]
    """Outputs that stand for no class, such as void; the others are the classes, in their order."""
    channel_order: Literal["rgb", "bgr"]
    """Order of the channels that the network takes."""
    mean: list[float]
    """Mean per channel, of RGB in [0, 1], in the order R, G, B; for images in [0, 255], what was given / 255."""
    std: list[float]
    """Standard deviation per channel, in the same order and unit."""
