"""Methods that can follow a stream while they are scored."""

from collections.abc import Mapping
from typing import Any

from sfda.errors import UserError
from sfda.methods.kinds.method import Method


class OnlineMethod(Method):
    """With `online` there is no fit: `sfda validate` predicts each target batch, then calls `adapt_online` with it."""

    online: bool = False

    @classmethod
    def has_fit_with(cls, options: Mapping[str, Any]) -> bool:
        """Online the method adapts while it is scored."""
        return not options.get("online") and super().has_fit_with(options)

    def setup(self, stage: str) -> None:
        """Prepare a run on one process.

        Raises:
            UserError: an online run with several processes.
        """
        if self.online and self.trainer.world_size > 1:
            raise UserError("online: true follows one stream in its order: use one process, --trainer.devices 1")
        super().setup(stage)
