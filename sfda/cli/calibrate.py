"""``sfda calibrate``: from a finished run to the fit that calibrates its probabilities.

What can be asked for without torch is: mistakes are answered at once.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from sfda.errors import UserError
from sfda.runs.experiment import find_fragment
from sfda.runs.run import Run

CALIBRATORS = ("temperature_scaling", "pseudo_cal", "label_calibration")
"""Methods that `sfda calibrate` fits, by the names of their fragments."""

TRAINER = {
    "callbacks": "null",
    "gradient_clip_val": "null",
    "accumulate_grad_batches": "1",
    "max_steps": "-1",
    "min_steps": "null",
    "max_time": "null",
    "limit_train_batches": "null",
    "overfit_batches": "0.0",
    "val_check_interval": "null",
}
"""What a run's trainer may hold that one pass over all images without an optimizer must not."""


def calibration_arguments(run: Path, calibrator: str, out: Path | None, more: Sequence[str] = ()) -> list[str]:
    """What follows ``sfda fit`` to calibrate the selected checkpoint of a run, `more` options of it at the end.

    The fit has the run's data, trainer, network and views; its experiment is named ``<experiment>+<calibrator>``, its
    folder is `out`, by default `calibrated_folder`.

    Raises:
        UserError: the run cannot be calibrated, or not by this one of `CALIBRATORS`.
    """
    if calibrator not in CALIBRATORS:
        raise UserError(f"--with {calibrator}: one of {', '.join(CALIBRATORS)}")
    finished = Run(run)
    model = finished.model()
    if not finished.selected.is_file():
        raise UserError(f"--run {run}: this run has no selected.ckpt; finish it with `sfda fit --run {run}`")
    if calibrator == "label_calibration":
        _check_for_label_calibration(finished)
    options = {
        **{f"--trainer.{name}": value for name, value in TRAINER.items()},
        "--data.init_args.samples_per_epoch": "null",  # one look at every image, however long the run's epochs were
        "--model.init_args.network": model["network"],
        "--model.init_args.views": model["views"],
        "--model.init_args.source_checkpoint": str(finished.selected),
        "--experiment": f"{finished.config()['experiment']}+{calibrator}",
        "--out": str(out or calibrated_folder(run, calibrator)),
    }
    if calibrator != "label_calibration":  # which takes the network alone
        options["--model.init_args.calibrated_model"] = json.dumps(model)
    arguments = ["--config", str(finished.config_file), "--model", str(find_fragment(f"model/{calibrator}.yaml"))]
    return [*arguments, *(word for pair in options.items() for word in pair), *more]


def calibrated_folder(run: Path, calibrator: str) -> Path:
    """``runs/streets/ada_bn/seed1`` → ``runs/streets/ada_bn+pseudo_cal/seed1``; ``mine`` → ``mine+pseudo_cal``."""
    if run.name in ("", ".."):
        run = run.resolve()
    if re.fullmatch(r"seed\d+", run.name) and run.parent.name:
        return run.parent.with_name(f"{run.parent.name}+{calibrator}") / run.name
    return run.with_name(f"{run.name}+{calibrator}")


def _check_for_label_calibration(run: Run) -> None:
    """Refuse a method whose network alone predicts something else: that is all that label calibration takes of it.

    Nor would the row know what the run has read: it is a source model that label calibration starts from.
    """
    import torch

    from sfda.data.label_spaces import CITYSCAPES19, load_class_set
    from sfda.methods import Method
    from sfda.methods.kinds.rebuild import rebuild_method
    from sfda.runs.checkpoints import read_checkpoint

    path, others = str(run.selected), "calibrate it with temperature_scaling or pseudo_cal"
    classes = load_class_set(run.data().get("classes") or CITYSCAPES19.name)
    method = rebuild_method(read_checkpoint(path), {**run.model(), "num_classes": len(classes)}, path).eval()
    read = method.has_read
    if read.reads_images("target") and not (read.source_free and read.labels_read is None):
        raise UserError(
            f"label_calibration would call what comes of {type(method).__name__} ({path}) source-free and label-free, "
            f"which it is not (it reads {read}): {others}"
        )
    method.views = "single"
    images = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = Method.single_view_probabilities(method, images, (128, 128))
        if torch.allclose(method.predict_probabilities(images), alone, atol=1e-5):
            return
    raise UserError(
        f"label_calibration takes the network of a run alone, and {type(method).__name__} ({path}) does not predict "
        f"with its network alone: {others}"
    )
