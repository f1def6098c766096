"""A training step of every method against the passes of its networks alone.

The passes are those that the step itself makes, recorded and made again: the same images through the same networks,
with a gradient or without, and one backward pass. What the ratio shows is what losses, labels, mixes and moving
averages cost beside them.
"""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from sfda.methods.cal_sfda import CalSFDA
from sfda.methods.cotta import CoTTA
from sfda.methods.da_cal import DACal
from sfda.methods.da_cal_source_free import DACalSourceFree
from sfda.methods.iapc import IAPC
from sfda.methods.info_max import InfoMax
from sfda.methods.kinds.trained import TrainedMethod
from sfda.methods.mean_teacher import MeanTeacher
from sfda.methods.mean_teacher_source_free import MeanTeacherSourceFree
from sfda.methods.self_training import SelfTraining
from sfda.methods.source_training import SourceTraining
from sfda.methods.target_oracle import TargetOracle
from sfda.methods.tent import Tent
from sfda.methods.urma import URMA
from sfda.methods.value_net_training import ValueNetTraining
from sfda.networks.segmenter import Segmenter
from side_by_side import Row, Where, cost

CLASSES = 19
AIM = 1.25
"""Losses and labels may cost a quarter of the passes that they go with."""
NEEDS_NETWORK, ON_GPU = True, True
METHODS: tuple[type[TrainedMethod], ...] = (
    SourceTraining,
    ValueNetTraining,
    CalSFDA,
    SelfTraining,
    IAPC,
    Tent,
    CoTTA,
    InfoMax,
    URMA,
    MeanTeacherSourceFree,
    DACalSourceFree,
    MeanTeacher,
    DACal,
    TargetOracle,
)


def make_method(kind: type[TrainedMethod], where: Where, **options: Any) -> TrainedMethod:
    """A method as in the middle of a fit, with the network's first weights."""
    method = kind(network=where.network, num_classes=CLASSES, **options).to(where.device)
    method._trainer = SimpleNamespace(
        world_size=1, fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0)), current_epoch=0
    )
    method.log_dict = lambda *_, **__: None
    if isinstance(method, CalSFDA):
        method._class_weights = torch.ones(CLASSES, device=where.device)
    method.train_only_what_is_trained()
    method.train()
    method.set_modes()
    return method


def make_batch(where: Where) -> dict[str, dict[str, Any]]:
    """Images and labels of both domains."""
    generator = torch.Generator().manual_seed(0)
    shape, parts = (where.batch, *where.size), {}
    for domain in ("source", "target"):
        images = [torch.rand(where.batch, 3, *where.size, generator=generator) for _ in range(2)]
        labels = torch.randint(0, CLASSES, shape, generator=generator)
        part = {"image": images[0], "strong": images[1], "label": labels, "pseudo_label": labels}
        part["valid"] = torch.ones(shape, dtype=torch.bool)
        parts[domain] = {name: value.to(where.device) for name, value in part.items()}
        parts[domain]["name"] = [str(number) for number in range(where.batch)]
    return parts


class Step:
    """A training step of a method, and the passes of its networks alone."""

    def __init__(self, method: TrainedMethod, where: Where) -> None:
        self.method, self.where = method, where
        batch = make_batch(where)
        needs = method.needs
        self.batch = {name: batch[name] for name in ("source", "target") if getattr(needs, name) != "nothing"}
        self.passes = self._recorded()

    def _recorded(self) -> list[tuple[Segmenter, tuple[Any, ...], dict[str, Any], bool]]:
        passes = []

        def record(network: Segmenter, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            copies = tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in arguments)
            passes.append((network, copies, options, torch.is_grad_enabled()))

        hooks = [
            module.register_forward_pre_hook(record, with_kwargs=True)
            for module in self.method.modules()
            if isinstance(module, Segmenter)
        ]
        self.whole()
        for hook in hooks:
            hook.remove()
        return passes

    def whole(self) -> None:
        """Losses, backward, and what follows an optimizer's step: the look for weights that are NaN, averages."""
        self.method.zero_grad()
        with self.where.autocast():
            losses = self.method.compute_losses(self.batch)
        torch.stack(list(losses.values())).sum().backward()
        self.method._weights_are_finite()
        self.method.after_optimizer_step()

    def bare(self) -> None:
        """The forward passes, and backward from the sum of their logits."""
        self.method.zero_grad()
        total = torch.zeros((), device=self.where.device)
        for network, arguments, options, with_gradient in self.passes:
            with torch.set_grad_enabled(with_gradient), self.where.autocast():
                output = network(*arguments, **options)
            total = total + (output[0] if isinstance(output, tuple) else output).float().sum()
        if total.requires_grad:
            total.backward()


def rows(where: Where) -> Iterator[Row]:
    for kind in METHODS:
        step = Step(make_method(kind, where), where)
        forward = f"{len(step.passes)} forward"
        backward = ", backward" if any(passed[3] for passed in step.passes) else ""
        name = f"{kind.__name__} step, {where}"
        yield cost(name, step.whole, f"its {forward}{backward} alone", step.bare, AIM, where)
