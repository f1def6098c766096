"""What a BatchNorm layer in train mode cannot do."""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sfda.errors import UserError


def refuse_untrainable(name: str, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    """What a BatchNorm layer in train mode cannot do, by the layer's name; torch says it without."""
    assert isinstance(layer, _BatchNorm)
    if not layer.training and layer.running_mean is not None:
        return
    if layer.eps <= 0:
        raise UserError(
            f"BatchNorm layer {name!r} has eps {layer.eps}, so a channel without variance is divided by 0: build "
            "the network with eps 1e-5, which changes no weight"
        )
    if inputs[0].numel() <= inputs[0].shape[1]:
        raise UserError(
            f"BatchNorm layer {name!r} gets one value per channel, which has no variance: it follows a global pooling, "
            "and the batch has one image. Give a larger --data.init_args.batch_size, or a network without such a branch"
        )
