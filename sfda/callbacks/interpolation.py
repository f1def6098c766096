"""Ends a fit between the network that training began with and the one that it led to."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.datasets import DomainBatch
from sfda.errors import UserError
from sfda.files import write_json
from sfda.judging.models import model_of
from sfda.judging.second_judge import BATCH, GATHERED, second_judge
from sfda.judging.shares import IMAGES, SHARES, ScoredShare, best_share, needs_judge, score_shares
from sfda.methods import Method
from sfda.methods.kinds.rebuild import load_fixed_method
from sfda.methods.kinds.trained import TrainedMethod
from sfda.networks.interpolation import State, interpolate
from sfda.progress import write_line
from sfda.runs.checkpoints import read_checkpoint, write_checkpoint
from sfda.runs.run import Run

NETWORK = "network."


class Interpolation(MethodCallback):
    """Keeps the network as it is when training begins, where the method's `share` is not 1.

    That is the source model with whatever the method has done to its statistics before the first step. It travels with
    the checkpoints that a fit can be resumed from.
    """

    def __init__(self) -> None:
        self.start: State = {}

    @property
    def _is_on(self) -> bool:
        return isinstance(self.method, TrainedMethod) and self.method.share != 1

    @override
    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find out whether a share can be chosen.

        Raises:
            UserError: there is nothing to choose it on.
        """
        super().setup(trainer, pl_module, stage)
        method = self.method
        if stage != "fit" or not isinstance(method, TrainedMethod) or method.share != "auto":
            return
        if "target" not in method.datamodule.validation_sets:
            raise UserError(
                f"model option share: auto looks at images of the target, and {type(method).__name__} reads none: give "
                "a number from 0 to 1"
            )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Copy the network; a resumed run has it from the checkpoint."""
        if self._is_on and trainer.ckpt_path is None:
            self.start = {key: value.detach().cpu().clone() for key, value in self.method.network.state_dict().items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Make sure that it is there.

        Raises:
            UserError: the fit that goes on had another share.
        """
        if self._is_on and not self.start:
            raise UserError(
                f"model option share: {trainer.ckpt_path} does not hold the network that its training began with, as "
                "it had share 1: give 1, or begin again"
            )

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start} if self.start else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.start = dict(state_dict["start"])


def keep_share(trainer: L.Trainer, method: Method, run: Run) -> None:
    """Bring ``selected.ckpt`` of a fit that has ended to the method's `share`; to be called by one process.

    The share, and where it was chosen what was chosen from, is written to ``selection.json``. All other checkpoints
    stay as they were trained.

    Args:
        trainer: The Trainer, whose callbacks know the start.
        method: The method at work.
        run: Its folder, with configuration and selected checkpoint.
    """
    starts = [callback.start for callback in trainer.callbacks if isinstance(callback, Interpolation)]  # type: ignore[attr-defined]
    if not starts or not starts[0]:
        return
    assert isinstance(method, TrainedMethod)
    checkpoint = read_checkpoint(str(run.selected))
    state = checkpoint["state_dict"]
    trained = {key: state[NETWORK + key] for key in starts[0]}
    report: dict[str, Any] = {"share": method.share}
    if method.share == "auto":
        scored = _score(method, run, starts[0], trained)
        chosen = best_share(scored)
        report = {"share": chosen.share, "shares": [each.as_dict() for each in scored]}
    kept = interpolate(starts[0], trained, report["share"])
    state.update({NETWORK + key: value for key, value in kept.items()})
    write_checkpoint(run.selected, checkpoint)
    write_json(run.folder / "selection.json", run.selection() | report)
    how = "chosen without labels" if method.share == "auto" else "as asked for"
    write_line(f"{run.selected}: {report['share']:g} of the way from the start to what was trained, {how}")


@torch.inference_mode()
def _score(method: TrainedMethod, run: Run, start: State, trained: State) -> list[ScoredShare]:
    fixed = load_fixed_method(run, int(method.hparams["num_classes"])).to(method.device)

    def use(share: float) -> None:
        fixed.network.load_state_dict(interpolate(start, trained, share))

    over_scored, judge = method.score_probabilities, None
    if needs_judge(method.optimises):
        use(0.0)
        judge = second_judge(
            fixed.network, lambda: (batch["image"] for batch in _batches(method, GATHERED, BATCH)), over_scored
        )
    predict = model_of(fixed, over_scored).single
    images = [batch["image"] for batch in _batches(method, IMAGES, 1)]
    return score_shares(SHARES, use, predict, judge, images, trains_on=method.optimises)


def _batches(method: Method, first: int, batch_size: int) -> Iterator[DomainBatch]:
    return method.datamodule.plain_batches(
        "target", method.device, split="val", title="choosing a share", first=first, batch_size=batch_size
    )
