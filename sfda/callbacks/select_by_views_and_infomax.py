"""The checkpoint that is best by agreement between views and by InfoMax together."""

from typing import Any

import lightning as L
from typing_extensions import override

from sfda.callbacks.rank_sum import RankSum
from sfda.callbacks.view_agreement import ViewAgreement


class SelectByViewsAndInfoMax(RankSum):
    """Largest rank(agreement between views) + rank(InfoMax): agreement rewards seeing little, InfoMax confidence."""

    score = "views_and_infomax"
    ranked = ("view_agreement", "infomax")
    signals = ("views", "infomax")
    passes = 5

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._views = ViewAgreement()

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._views.setup(trainer, pl_module, stage)
        super().setup(trainer, pl_module, stage)

    @override
    def on_validation_batch_start(self, *batch: Any, **which: Any) -> None:
        self._views.on_validation_batch_start(*batch, **which)
