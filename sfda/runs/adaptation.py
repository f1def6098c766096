"""``sfda adapt``: which runs stand for it, and how much of each fits into the time. Imports no torch."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sfda.errors import UserError, did_you_mean
from sfda.runs.engine import Stage
from sfda.runs.experiment import experiments_of, resolve
from sfda.runs.run import Run

BENCHMARK = "own"
SOURCE_ONLY = "source_only"
AGREEMENT = "sfda.callbacks.view_agreement.ViewAgreement"
VIEWS = 6
"""Passes per image of averaged views."""
AGREEMENT_VIEWS = 5
"""Passes per image of the label-free score that each run gets."""
ALPHAS = 8
"""Values of α that AdaBN scores, each by `AGREEMENT_VIEWS` passes per image."""
AUTO = "auto"
SEARCH = 42
"""Passes per scored image, as many as one of the image's own size, of the search of `sfda.methods.auto.Auto`."""
SEARCH_STATISTICS = 9
"""The same per image that statistics are gathered from."""
SEARCH_IMAGES = 16
"""Images that it looks at."""
LARGER = 2.25
"""How many times as long an image takes at the size that it may choose."""
SOUP = "model_soup"
"""What trains on top of `AUTO`, where both are asked for."""
SOUP_STEPS, SOUP_BATCH = 30, 2
"""Steps that `SOUP` takes, and images per step."""
SOUP_PASSES = 13
"""Passes per image of a step: averaged views, and two networks that train."""
JUDGED = 12
"""Images that the recommended model is judged on."""
JUDGING = 24
"""Passes per image of that, for it and the source model."""
BACKWARD = 2
"""Passes that a backward pass takes as long as."""
STEPS = (20, 200)
"""Fewest and most steps of a method that trains."""
BATCH = 4
OVERHEAD = 6.0
"""Seconds per run that are no passes."""
MOST_PIXELS = 512 * 1024
FEWEST_PIXELS = 128 * 256


@dataclass(frozen=True)
class Plan:
    """How much is done, so that it fits into the time.

    Attributes:
        methods: Experiments below ``own/``, in the order in which they are run, the source model first.
        size: (height, width) at which the network sees the images.
        scored: Images that are scored, labelled or not.
        gathered: Images that statistics are gathered from.
        searched: Images that Auto and AdaBN score on what they try.
        steps: Optimizer steps of a method that trains.
        pass_seconds: Seconds of one forward pass of one image at this size, as measured.
    """

    methods: tuple[str, ...]
    size: tuple[int, int]
    scored: int
    gathered: int
    searched: int
    steps: int
    pass_seconds: float

    def seconds(self, method: str) -> float:
        """About how long a method takes, its scores included."""
        passes: float = self.scored * ((VIEWS if averages_views(method) else 1) + AGREEMENT_VIEWS)
        if method.startswith(AUTO):
            passes = LARGER * passes + SEARCH * self.searched + SEARCH_STATISTICS * self.gathered_by(method)
        elif method.startswith("ada_bn"):
            passes += self.gathered + ALPHAS * AGREEMENT_VIEWS * self.searched
        elif method.startswith(SOUP):
            passes = (LARGER if AUTO in self.methods else 1) * (passes + SOUP_STEPS * SOUP_BATCH * SOUP_PASSES)
        elif not method.startswith(SOURCE_ONLY):  # what trains may have a teacher, and what it labels
            passes += self.steps * BATCH * (2 + BACKWARD)
        return OVERHEAD + passes * self.pass_seconds

    def gathered_by(self, method: str) -> int:
        """Images that a method gathers statistics from."""
        return min(SEARCH_IMAGES, self.gathered) if method.startswith(AUTO) else self.gathered

    def total(self) -> float:
        """About how long all of it takes, in seconds."""
        judging = JUDGING * min(JUDGED, self.scored) * self.pass_seconds if len(self.methods) > 1 else 0.0
        judging *= LARGER if AUTO in self.methods else 1
        return sum(self.seconds(method) for method in self.methods) + judging

    def as_dict(self) -> dict[str, Any]:
        """As JSON keeps it."""
        return asdict(self)


def averages_views(method: str) -> bool:
    """Whether an experiment below ``own/`` predicts with averaged views."""
    return method in (AUTO, SOUP) or method.endswith("multi_scale")


def plan_of(stored: Mapping[str, Any]) -> Plan:
    """The plan that `Plan.as_dict` gave."""
    return Plan(**{**stored, "methods": tuple(stored["methods"]), "size": tuple(stored["size"])})


def make_plan(
    methods: Sequence[str],
    size: tuple[int, int],
    images: int,
    labelled: int,
    pass_seconds: float,
    seconds: float,
) -> Plan:
    """The largest plan that fits into the time: first fewer images are scored, then images get smaller.

    Args:
        methods: Experiments, the source model first.
        size: (height, width) that is wanted.
        images: How many there are.
        labelled: How many of them have labels.
        pass_seconds: Seconds of a forward pass of one image at `size`.
        seconds: The time there is.
    """
    full = Plan(
        tuple(methods),
        size,
        scored=min(labelled or 32, images, 200),
        gathered=min(64, images),
        searched=min(16, images),
        steps=STEPS[1],
        pass_seconds=pass_seconds,
    )
    for share in (1.0, 0.75, 0.5, 0.35, 0.25):
        plan = _reduced(full, share)
        if plan.total() <= seconds:
            return plan
    height, width = size
    if height * width / 2 < FEWEST_PIXELS:
        return plan
    smaller = (round(height / math.sqrt(2)), round(width / math.sqrt(2)))
    return make_plan(methods, smaller, images, labelled, pass_seconds / 2, seconds)


def _reduced(plan: Plan, share: float) -> Plan:
    def at_least(least: int, most: int) -> int:
        return max(min(least, most), round(share * most))

    return Plan(
        plan.methods,
        plan.size,
        scored=at_least(8, plan.scored),
        gathered=at_least(16, plan.gathered),
        searched=at_least(8, plan.searched),
        steps=at_least(STEPS[0], plan.steps),
        pass_seconds=plan.pass_seconds,
    )


def methods_asked_for(names: Sequence[str]) -> list[str]:
    """The experiments of ``--method NAMES``, the source model first.

    ``auto`` is what is known to help and trains nothing: averaged views, by themselves and of `sfda.methods.auto.Auto`.
    ``model_soup`` beside it starts from what it has chosen.

    Raises:
        UserError: there is no such method.
    """
    known = [name.partition("/")[2] for name in experiments_of(BENCHMARK)]
    chosen = [SOURCE_ONLY]
    if AUTO in names:  # what starts from it comes after it
        names = [AUTO, *(name for name in names if name != AUTO)] if SOUP in names else names
    for name in names:
        if name == AUTO:
            chosen += [f"{SOURCE_ONLY}+multi_scale", AUTO]
        elif name in known:
            chosen.append(name)
        else:
            listed = ", ".join(other for other in known if "+" not in other)
            raise UserError(f"--method {name}: one of {listed}{did_you_mean(name, known)}")
    return list(dict.fromkeys(chosen))


def takes_share(method: str) -> bool:
    """Whether an experiment below ``own/`` trains, so that its weights have a way back to where they began."""
    return "share" in resolve(f"{BENCHMARK}/{method}").config["model"]["init_args"]


def stages_of(plan: Plan, out: Path, source_config: Path, data: Path, share: str | None = None) -> list[Stage]:
    """One run per method, each as a user could type it; `share` is that of what trains, None: the experiment's."""
    return [Stage(out, method, tuple(_words(plan, method, out, source_config, data, share))) for method in plan.methods]


def _words(plan: Plan, method: str, out: Path, source_config: Path, data: Path, share: str | None) -> list[str]:
    words = [f"{BENCHMARK}/{method}", "--config", str(source_config), "--data", str(data)]
    if not method.startswith(SOURCE_ONLY):
        epochs, samples = 1, plan.gathered_by(method)
        if method.startswith(AUTO):  # whose statistics are of few images, together
            words += ["--data.init_args.batch_size", str(min(8, samples))]
        if method.startswith(("ada_bn", AUTO)):
            words += ["--model.init_args.scored_images", str(plan.searched)]
        elif method.startswith(SOUP):
            epochs, samples = 2, SOUP_STEPS // 2 * min(SOUP_BATCH, plan.gathered)
            words += ["--data.init_args.batch_size", str(min(SOUP_BATCH, plan.gathered))]
            if AUTO in plan.methods:
                words += ["--model.init_args.source_checkpoint", str(Run(out / AUTO).selected)]
        else:
            epochs = 4  # so that an interrupted one goes on
            samples = max(1, plan.steps // epochs) * min(BATCH, plan.gathered)
        # Scored once, by `sfda validate`: nothing is selected during the fit.
        words += ["--trainer.max_epochs", str(epochs), "--trainer.check_val_every_n_epoch", str(epochs + 1)]
        words += ["--data.init_args.samples_per_epoch", str(samples)]
    if share is not None and takes_share(method):
        words += ["--model.init_args.share", share]
    return [*words, "--trainer.callbacks+", AGREEMENT]


def data_config(
    plan: Plan, folder: Path, classes: str, score_classes: str | None, label_values: str | None
) -> dict[str, Any]:
    """The data fragment of images that lie linked below `folder`: ``train``, ``val`` and, with labels, ``labels``.

    `label_values` is what these hold, None where there are none.
    """
    target = {"layout": "folder", "root": str(folder), "train_images": "train", "val_images": "val"}
    if label_values is not None:
        target |= {"val_labels": "labels", "classes": score_classes or classes, "label_values": label_values}
    options = {
        "target": target,
        "classes": classes,
        "score_classes": score_classes,
        "size": list(plan.size),
        "batch_size": min(BATCH, plan.gathered),
        "val_batch_size": 1,
        "num_workers": 0,
    }
    return {"class_path": "sfda.data.datamodule.DomainAdaptationDataModule", "init_args": options}
