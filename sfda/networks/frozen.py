"""A network that stands still inside a module that trains."""

from typing import Any

import torch
from torch import nn
from typing_extensions import Self


class Frozen(nn.Module):
    """A module that stays in eval mode and gives no gradient, whatever becomes of the module around it.

    Its weights are saved with the rest, so that a resumed run has them without the source checkpoint.

    Args:
        module: It is taken as it is, not copied.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Eval mode, always."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The module's output, without a gradient."""
        return self.module(*args, **kwargs)
