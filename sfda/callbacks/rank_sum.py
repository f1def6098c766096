"""The checkpoint with the largest sum of two ranks."""

from pathlib import Path
from typing import ClassVar

import lightning as L
import torch
from typing_extensions import override

from sfda.callbacks.selection import Selector
from sfda.metrics.view_agreement import ranks


class RankSum(Selector):
    """Largest rank by one score + rank by another among the candidates of a fit.

    Each of the two is fooled by other things. Ranks are those among all candidates, so that they are final at the end
    of a fit alone; until then every candidate stays that no other one beats by both scores. The earlier of equals wins.

    Class attributes:
        ranked: Both scores; of each, larger is better.
    """

    mode_of_score = "max"
    ranked: ClassVar[tuple[str, str]]

    @property
    @override
    def scores(self) -> tuple[str, ...]:
        return self.ranked

    @override
    def _keep(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        eligible = [candidate for candidate in self.candidates if candidate["eligible"]]
        values = torch.tensor([candidate["values"] for candidate in eligible], dtype=torch.float64)
        for candidate, total in zip(eligible, (ranks(values[:, 0]) + ranks(values[:, 1])).tolist(), strict=True):
            candidate["value"] = total
        trainer.save_checkpoint(self._path(eligible[-1]), weights_only=True)
        if trainer.is_global_zero and self.save_top_k != -1:
            for candidate, is_beaten in zip(eligible, beaten(values).tolist(), strict=True):
                if is_beaten:
                    self._path(candidate).unlink(missing_ok=True)
        assert self.selected is not None
        self.best_model_path = str(self._path(self.selected))

    def _path(self, candidate: dict[str, int]) -> Path:
        return Path(str(self.dirpath), f"epoch={candidate['epoch']}-step={candidate['step']}.ckpt")


def beaten(values: torch.Tensor) -> torch.Tensor:
    """Which of (N, 2) values another row reaches in both columns and surpasses in one: (N,) bool."""
    reached = (values[None] >= values[:, None]).all(2)
    return (reached & (values[None] > values[:, None]).any(2)).any(1)
