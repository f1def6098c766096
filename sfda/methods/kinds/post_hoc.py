"""Calibration after the fact: one temperature on the probabilities of any method's checkpoint."""

import math
import sys
import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.data.sampling import run_seed
from sfda.errors import UserError
from sfda.files import write_json
from sfda.methods.kinds.gathered import GatheredMethod
from sfda.methods.kinds.method import Method
from sfda.methods.kinds.rebuild import rebuild_method
from sfda.metrics.functional import SMALLEST_PROBABILITY, at_least_float32, top_label
from sfda.pseudo_labels.uniform_sample import UniformSample
from sfda.ranks import sum_over_ranks
from sfda.runs.checkpoints import read_checkpoint

SAMPLE = 2**18
"""Pixels that the temperature is fitted on, all processes together."""

TEMPERATURES = (0.05, 20.0)
"""Smallest and largest temperature that `fit_temperature` looks at."""

_STEPS = 100
_TOLERANCE = 1e-10  # relative
_OF_TRAINING = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks"}


class PostHocCalibration(GatheredMethod):
    """Predicts softmax(log p / T), where p are the probabilities that a finished method predicts.

    The `source_checkpoint` is that of a run of any method, which is rebuilt as it is (its head, its teacher, its own
    temperature), but with the option `views` of this one. Nothing in it changes; T > 0 minimises the mean negative
    log-likelihood (NLL) of a uniform sample of the pixels that a subclass gathers with `add`. One T for all pixels and
    classes changes no predicted class (over coarser `score_classes`, whose probabilities are sums, it may).

    The checkpoint holds the rebuilt method with what it takes to rebuild it, and its network under ``network`` too, so
    that other methods can start from it; the file that it came from may go. Writes ``calibration.json`` (T, the NLL
    before and after) into the run folder.

    Args:
        calibrated_model: What the other method is: its class path under ``class``, and its options, as the ``model`` of
            its run's ``config.yaml`` names them; `sfda calibrate` fills it in. None: one of the project's own methods,
            with the options that its checkpoint holds.
        **base: Options of `Method`.

    Raises:
        UserError: the checkpoint cannot be wrapped.
    """

    temperature: Tensor

    def __init__(self, calibrated_model: dict[str, Any] | None = None, **base: Any) -> None:
        super().__init__(**base)
        self.calibrated_model = calibrated_model
        self.calibrated: Method | None = None
        self.register_buffer("temperature", torch.ones(()))
        self._sample = UniformSample(SAMPLE, (run_seed(),))

    def initialise_from_source(self) -> None:
        """Rebuild the method of `source_checkpoint`."""
        super().initialise_from_source()  # refuses what does not fit
        self._wrap(read_checkpoint(str(self.source_checkpoint)), f"source_checkpoint {self.source_checkpoint}")

    def start_from_size(self, scale: float) -> None:
        """The method inside keeps its size."""

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Rebuild the method before the weights are loaded."""
        super().on_load_checkpoint(checkpoint)
        prefix = "calibrated."
        state = {key[len(prefix) :]: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
        name = f"the method that this checkpoint of {type(self).__name__} calibrates"
        origin = checkpoint.get("calibrated")
        if not isinstance(origin, dict):
            raise UserError(f"{name} is not in it: give the selected.ckpt that its fit wrote")
        self._wrap({**origin, "state_dict": state}, name)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What it takes to rebuild the method."""
        checkpoint["calibrated"] = self._origin

    def _wrap(self, checkpoint: dict[str, Any], name: str) -> None:
        said = {"network": self.hparams["network"], **(self.calibrated_model or {})}
        self.calibrated = rebuild_method(checkpoint, {**said, "num_classes": self.hparams["num_classes"]}, name)
        self.network = self.calibrated.network
        self._origin = {key: value for key, value in checkpoint.items() if key not in _OF_TRAINING}

    @property
    def has_read(self) -> Needs:
        """Also what the fit of the method inside read; what a source model was trained on does not count, as always."""
        inside = self.calibrated
        if inside is None or not (inside.needs.reads_images("target") or isinstance(inside, PostHocCalibration)):
            return self.needs
        return self.needs.together_with(inside.has_read)

    def uncalibrated_probabilities(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """What the method inside predicts; see `Method.predict_probabilities`."""
        assert self.calibrated is not None
        self.calibrated.views = self.views
        return self.calibrated.predict_probabilities(images, size)

    def predict_probabilities(self, images: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Calibrated probabilities; see `Method.predict_probabilities`."""
        return temper(self.uncalibrated_probabilities(images, size), self.temperature)

    def prepare_fit(self) -> None:
        """The method inside, and an empty sample."""
        super().prepare_fit()
        self._sample = UniformSample(SAMPLE // self.trainer.world_size, (run_seed(), self.trainer.global_rank))

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """Gather with the whole method in eval mode, not its network alone."""
        assert self.calibrated is not None
        self.calibrated.eval()
        super().training_step(batch, batch_idx)

    def add(self, probabilities: Tensor, labels: Tensor) -> None:
        """Offer the labelled pixels of a batch to the sample.

        Args:
            probabilities: Uncalibrated, (B, C, H, W).
            labels: (B, H, W) int64, 255 = takes part in nothing.
        """
        pixels = torch.cat([log_probabilities(probabilities), labels.unsqueeze(1)], dim=1)
        self._sample.add(pixels.movedim(1, 0)[:, labels != IGNORE].unsqueeze(0))

    def finish(self) -> None:
        """T from all processes' samples, and the report."""
        pixels = self._sample.of_all_ranks(self.device).reshape(-1, self.network.num_classes + 1)
        scores, labels = pixels[:, :-1], pixels[:, -1].long()
        count = int(sum_over_ranks(torch.tensor(len(labels), device=self.device)))
        if count == 0:
            raise UserError(
                f"{type(self).__name__} found no pixel to fit a temperature on: the images have no labels, or all of "
                "them are predicted as one and the same class"
            )
        nll_before = mean_nll(scores, labels, 1.0)
        temperature = fit_temperature(scores, labels)
        self.temperature.fill_(temperature)
        report = {
            "calibrated": type(self.calibrated).__name__,
            "temperature": temperature,
            "pixels": count,
            "nll_before": nll_before,
            "nll_after": mean_nll(scores, labels, temperature),
        }
        if self.trainer.is_global_zero:
            self._write(report)

    def _write(self, report: dict[str, Any]) -> None:
        if report["temperature"] in TEMPERATURES:
            warnings.warn(f"the temperature is at an end of its range, {TEMPERATURES}: do not trust it", stacklevel=1)
        write_json(self.run_folder / "calibration.json", report)
        sys.stdout.write("T = {temperature:.4f}, NLL {nll_before:.4f} → {nll_after:.4f} nats\n".format(**report))


def log_probabilities(probabilities: Tensor) -> Tensor:
    """Logarithms in at least float32, those of 0 finite."""
    return at_least_float32(probabilities).clamp(min=SMALLEST_PROBABILITY).log()


def temper(probabilities: Tensor, temperature: Tensor | float) -> Tensor:
    """softmax(log p / T); the predicted class of every pixel stays, ties and rounding included.

    Args:
        probabilities: (B, C, H, W).
        temperature: T > 0.

    Returns:
        (B, C, H, W), at least float32.
    """
    tempered = (log_probabilities(probabilities) / temperature).softmax(dim=1)
    # Rounded, probabilities that differ in their last bits become a tie, which the first class would win.
    predicted = top_label(probabilities)[1].long().unsqueeze(1)
    largest = tempered.gather(1, predicted)
    smaller = largest * (1 - torch.finfo(tempered.dtype).eps)
    return tempered.minimum(smaller).scatter(1, predicted, largest)


def fit_temperature(scores: Tensor, labels: Tensor) -> float:
    """The T in `TEMPERATURES` with the smallest mean NLL of softmax(scores / T); 1 where there is no pixel.

    The NLL is convex in 1/T: Newton's method inside a bracket. All processes call it together, each with its own part
    of the sample, and get the same bits: every step looks at sums over all of them.

    Args:
        scores: (N, C) logits, or logarithms of probabilities.
        labels: (N,) classes.
    """
    scores = scores.double()
    scores = scores - scores.amax(1, keepdim=True)
    labelled = scores.gather(1, labels[:, None]).squeeze(1)

    def derivatives(inverse: float) -> tuple[float, float]:
        weights = (inverse * scores).softmax(1)
        mean = (weights * scores).sum(1)
        variance = (weights * scores.square()).sum(1) - mean.square()
        slope, curvature = sum_over_ranks(torch.stack([(mean - labelled).sum(), variance.sum()])).tolist()
        return slope, curvature

    low, high = (1 / temperature for temperature in reversed(TEMPERATURES))
    if derivatives(low)[0] > 0:
        return TEMPERATURES[1]
    if derivatives(high)[0] < 0:
        return TEMPERATURES[0]
    inverse = 1.0
    for _ in range(_STEPS):
        slope, curvature = derivatives(inverse)
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        step = slope / max(curvature, sys.float_info.min)
        if abs(step) <= _TOLERANCE * inverse:
            break
        inverse = inverse - step if low < inverse - step < high else math.sqrt(low * high)
    return 1 / inverse


def mean_nll(scores: Tensor, labels: Tensor, temperature: float) -> float:
    """Mean NLL of softmax(scores / T) over the pixels of all processes, in nats; NaN where there is none.

    Arguments as for `fit_temperature`.
    """
    total = F.cross_entropy(scores.double() / temperature, labels, reduction="sum")
    total, count = sum_over_ranks(torch.stack([total, total.new_tensor(len(labels))]))
    return float(total / count)
