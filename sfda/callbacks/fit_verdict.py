"""Says at the end of a fit whether its model is better than the source, and keeps the source where it is worse."""

from collections.abc import Iterator
from pathlib import Path

import torch

from sfda.data.datasets import DomainBatch
from sfda.errors import UserError
from sfda.files import write_json
from sfda.judging.evidence import JUDGE, look_at, together
from sfda.judging.models import model_of, source_method
from sfda.judging.second_judge import BATCH, GATHERED, second_judge
from sfda.judging.verdict import Verdict, judge_without_labels
from sfda.methods import Method
from sfda.methods.kinds.rebuild import load_fixed_method
from sfda.methods.kinds.trained import TrainedMethod
from sfda.progress import write_line
from sfda.runs.checkpoints import read_checkpoint, write_checkpoint
from sfda.runs.run import Run

IMAGES = 24
"""Target validation images that are looked at, the first ones."""


def judge_fit(method: Method, run: Run) -> Verdict | None:
    """What to think of the selected checkpoint of a fit; written to ``selection.json`` with the reasons.

    The verdict of `sfda.judging.verdict.judge_without_labels`, on the first target validation images. Where it is
    "worse", ``selected.ckpt`` of a trained method becomes a checkpoint of the method whose network is the source
    model's; ``last.ckpt`` stays what was trained. To be called by one process.

    Args:
        method: The method at work, whose fit has ended.
        run: Its folder, with configuration and selected checkpoint.

    Returns:
        The verdict; None for a fit that reads labels of the target, starts from no model, validates no image of the
        target, or has outlived its source model.
    """
    if not _is_judged(method):
        return None
    if not Path(str(method.source_checkpoint)).is_file():  # a fit that goes on needs it no more
        write_line(f"{run.folder}: not judged, {method.source_checkpoint} is not there any more")
        return None
    count = int(method.hparams["num_classes"])
    try:
        source = source_method(run.model(), count).to(method.device)
        verdict = _judge(method, source, load_fixed_method(run, count).to(method.device))
    except UserError as error:  # the fit is whole all the same
        write_line(f"{run.folder}: not judged ({error})")
        return None
    kept = is_replaced(method, verdict)
    if kept:
        _keep(source.cpu(), run)
    said = {"verdict": verdict.word, "reasons": verdict.reasons, "source_is_kept": kept}
    write_json(run.folder / "selection.json", run.selection() | said)
    return verdict


def is_replaced(method: Method, verdict: Verdict | None) -> bool:
    """Whether the source model stands for a run."""
    return verdict is not None and verdict.word == "worse" and isinstance(method, TrainedMethod)


def _is_judged(method: Method) -> bool:
    return (
        method.needs.target == "images"
        and method.source_checkpoint is not None
        and "target" in method.datamodule.validation_sets
        and method.trainer.limit_val_batches != 0
    )


def _keep(source: Method, run: Run) -> None:
    checkpoint = read_checkpoint(str(run.selected))
    network = {f"network.{key}": value for key, value in source.network.state_dict().items()}
    checkpoint["state_dict"].update(network)
    write_checkpoint(run.selected, {**checkpoint, "global_step": 0})


@torch.inference_mode()
def _judge(method: Method, source: Method, adapted: Method) -> Verdict:
    over_scored = method.score_probabilities
    judge = second_judge(
        source.network, lambda: (batch["image"] for batch in _batches(method, GATHERED, BATCH)), over_scored
    )
    models = {name: model_of(each, over_scored) for name, each in (("source", source), ("adapted", adapted))}
    rows = [look_at(batch["image"], models["source"], judge, models) for batch in _batches(method, IMAGES, 1)]
    evidence = {name: together([row[name] for row in rows]) for name in rows[0]}
    return judge_without_labels(evidence["source"], evidence["adapted"], evidence[JUDGE], trains_on=method.optimises)


def _batches(method: Method, first: int, batch_size: int) -> Iterator[DomainBatch]:
    return method.datamodule.plain_batches(
        "target", method.device, split="val", title="judging the model", first=first, batch_size=batch_size
    )
