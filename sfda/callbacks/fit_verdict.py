"""Says at the end of a fit whether its model is better than the source, and keeps the source where it is worse."""

import json
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import torch
from typing_extensions import override

from sfda.callbacks.method_callback import MethodCallback
from sfda.data.datasets import DomainBatch
from sfda.files import write_json
from sfda.judging.evidence import look_at, together
from sfda.judging.models import model_of, source_method
from sfda.judging.second_judge import BATCH, GATHERED, second_judge
from sfda.judging.verdict import Verdict, judge_without_labels
from sfda.methods import Method
from sfda.methods.kinds.rebuild import load_fixed_method
from sfda.methods.kinds.trained import TrainedMethod
from sfda.progress import write_line
from sfda.runs.checkpoints import read_checkpoint, write_checkpoint
from sfda.runs.run import Run

IMAGES = 12
"""Target validation images that are looked at, the first ones."""


class FitVerdict(MethodCallback):
    """Judges what a fit that reads target images, but none of their labels, has selected.

    The verdict of `sfda.judging.verdict.judge_without_labels`, on the first target validation images, stands in the
    run's row and with its reasons in ``selection.json``. Where it is "worse", ``selected.ckpt`` of a trained method
    becomes a checkpoint of the method whose network is the source model's; ``last.ckpt`` stays what was trained.

    Args:
        run: The run folder.
    """

    def __init__(self, run: Run) -> None:
        self.run = run

    @override
    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._judges(trainer):
            return
        if trainer.is_global_zero:
            if Path(str(self.method.source_checkpoint)).is_file():
                self._judge()
            else:  # a fit that goes on needs it no more
                write_line(f"{self.run.folder}: not judged, {self.method.source_checkpoint} is not there any more")
        trainer.strategy.barrier()

    def _judges(self, trainer: L.Trainer) -> bool:
        method = self.method
        return (
            method.needs.target == "images"
            and method.source_checkpoint is not None
            and "target" in method.datamodule.validation_sets
            and trainer.limit_val_batches != 0
            and not getattr(trainer, "fast_dev_run", False)
        )

    def _judge(self) -> None:
        count = int(self.method.hparams["num_classes"])
        source = source_method(self.run.model(), count).to(self.method.device)
        verdict = self._verdict(source, load_fixed_method(self.run, count).to(self.method.device))
        write_line(f"{self.run.folder}: {verdict}")
        kept = verdict.word == "worse" and isinstance(self.method, TrainedMethod)
        selection = self.run.folder / "selection.json"
        report = json.loads(selection.read_text(encoding="utf-8")) if selection.is_file() else {}
        write_json(selection, report | {"verdict": verdict.word, "reasons": verdict.reasons, "source_is_kept": kept})
        row = self.run.row() | {"verdict": verdict.word}
        if kept:
            self._keep(source.cpu())
            row |= {"selected_by": "verdict", "selected_step": 0}
            write_line(f"{self.run.selected} is the source model; {self.run.last} is what was trained")
        self.run.write_row(row)

    def _keep(self, source: Method) -> None:
        checkpoint = read_checkpoint(str(self.run.selected))
        network = {f"network.{key}": value for key, value in source.network.state_dict().items()}
        checkpoint["state_dict"].update(network)
        write_checkpoint(self.run.selected, {**checkpoint, "global_step": 0})

    @torch.inference_mode()
    def _verdict(self, source: Method, adapted: Method) -> Verdict:
        method, over_scored = self.method, self.method.score_probabilities
        judge = second_judge(source.network, (batch["image"] for batch in self._batches(GATHERED, BATCH)))
        models = {name: model_of(each, over_scored) for name, each in (("source", source), ("adapted", adapted))}
        rows = [
            look_at(batch["image"], models["source"], lambda images, size: over_scored(judge(images, size)), models)
            for batch in self._batches(IMAGES, 1)
        ]
        evidence = {name: together([row[name] for row in rows]) for name in models}
        return judge_without_labels(
            evidence["source"],
            evidence["adapted"],
            trained=isinstance(method, TrainedMethod),
            trains_on=method.optimises,
        )

    def _batches(self, first: int, batch_size: int) -> Iterator[DomainBatch]:
        return self.method.datamodule.plain_batches(
            "target",
            self.method.device,
            split="val",
            title="judging the model",
            first=first,
            batch_size=batch_size,
        )
