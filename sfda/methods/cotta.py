"""Continual test-time adaptation: a mean teacher that needs no BatchNorm."""

import copy
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sfda.data.datasets import Batch
from sfda.data.needs import Needs
from sfda.data.transforms import RandomViews
from sfda.errors import refuse_outside
from sfda.losses.soft_cross_entropy import soft_cross_entropy
from sfda.methods.kinds.method import MULTI_SCALES
from sfda.methods.kinds.online import OnlineTrainedMethod
from sfda.networks.batch_norm import average_running_statistics, keep_lone_values
from sfda.networks.ema import update_average
from sfda.networks.frozen import Frozen

PAPER_SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


class CoTTA(OnlineTrainedMethod):
    """A student learns a teacher's soft labels on all pixels; the teacher is its moving average, and predicts.

    In the manner of "Continual Test-Time Domain Adaptation" (Wang et al., CVPR 2022, arXiv 2203.13591), implemented
    from the published description. All parameters train, whatever the network's normalisation. Differences from it:
    the student sees the strong photometric view of what the teacher sees, since from one and the same view a student
    without dropout would have no gradient while it equals its teacher; labels are averaged over views always or never,
    not by the source model's confidence; averaging and restoring are off by default, and the learning rate is higher,
    which is said to do better than the published values.

    The `network` is the teacher, in eval mode with the student's buffers; the student trains in train mode. A
    checkpoint holds both, and the source model's weights where some of them are restored.

    Online there is no fit: `sfda validate` predicts each batch of the target, then takes one step on whole images, of
    which every other one is mirrored by chance, from the source model on and with a constant learning rate. The source
    domain is scored after that.

    Args:
        label_views: What labels are averaged over: nothing (``single``), the scales 0.75, 1 and 1.25, each with its
            mirror image (``multi_scale``), or the paper's seven scales from 0.5 to 2, which are 14 views (``paper``).
        teacher_momentum: Share of the old teacher at an optimizer step; it must suit the number of steps.
        restore: Probability with which each weight of the student is set back to the source model's after a step; the
            paper has 0.01.
        online: Follow a stream in `sfda validate`.
        optimizer: As in `TrainedMethod`; AdamW without decay is the paper's Adam.
        lr: Learning rate.
        weight_decay: Weight decay.
        poly_power: As in `TrainedMethod`; 0 keeps the learning rate.
        **trained: Options of `TrainedMethod`.

    Raises:
        UserError: an option is out of its range.
    """

    needs = Needs(target="images", view="weak_and_strong")
    optimises = ("views",)

    def __init__(
        self,
        label_views: Literal["single", "multi_scale", "paper"] = "single",
        teacher_momentum: float = 0.999,
        restore: float = 0.0,
        online: bool = False,
        optimizer: Literal["sgd", "adamw"] = "adamw",
        lr: float = 3e-4,
        weight_decay: float = 0.0,
        poly_power: float = 0.0,
        **trained: Any,
    ) -> None:
        super().__init__(optimizer=optimizer, lr=lr, weight_decay=weight_decay, poly_power=poly_power, **trained)
        refuse_outside(0, 1, teacher_momentum=teacher_momentum, restore=restore)
        self.label_views = label_views
        self.teacher_momentum = teacher_momentum
        self.restore = restore
        self.online = online
        self.student = copy.deepcopy(self.network)
        self.source = Frozen(copy.deepcopy(self.network)) if restore else None
        if online:
            keep_lone_values(self.student)

    def initialise_from_source(self) -> None:
        """Teacher and student, and the weights that are restored."""
        super().initialise_from_source()
        for copied in (self.student, *([self.source.module] if self.source else [])):
            copied.load_state_dict(self.network.state_dict())

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """All of the student's."""
        return [{"name": "student", "params": list(self.student.parameters())}]

    def set_modes(self) -> None:
        """The teacher in eval mode."""
        self.network.eval()

    @torch.no_grad()
    def labels_of(self, images: Tensor) -> Tensor:
        """The teacher's probabilities (B, C, H, W) of images (B, 3, H, W), averaged over `label_views`."""
        size = (images.shape[-2], images.shape[-1])
        if self.label_views == "single":
            return self.single_view_probabilities(images, size)
        scales = MULTI_SCALES if self.label_views == "multi_scale" else PAPER_SCALES
        return self.multi_scale_probabilities(images, size, scales)

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """``consistency``."""
        target = batch["target"]
        labels = self.labels_of(target["image"])
        return {"consistency": soft_cross_entropy(self.student(target["strong"]), labels, valid=target["valid"])}

    def after_optimizer_step(self) -> None:
        """The teacher follows; then some weights of the student go back."""
        update_average(self.network, self.student, self.teacher_momentum)
        if self.source is not None:
            seed = int(self.shared_draws().integers(2**63))
            restore_weights(self.student, self.source.module, self.restore, seed)

    def make_ranks_equal(self) -> None:
        """The student has BN layers too."""
        super().make_ranks_equal()
        average_running_statistics(self.student)

    def online_losses(self, images: Tensor) -> dict[str, Tensor]:
        """``consistency`` on the views that a fit would draw, without their crops."""
        self.student.train()
        weak, strong = random_views(images, self.shared_draws())
        valid = torch.ones_like(images[:, 0], dtype=torch.bool)
        return self.compute_losses({"target": {"image": weak, "strong": strong, "valid": valid}})


@torch.no_grad()
def restore_weights(network: nn.Module, source: nn.Module, share: float, seed: int) -> None:
    """Set each weight of `network` back to that of `source` with probability `share`.

    Which ones is a function of `seed` and the kind of device.

    Args:
        network: Its parameters are changed in place.
        source: A module of the same structure, on the same device.
        share: In [0, 1].
        seed: The same on all ranks.
    """
    generator: torch.Generator | None = None
    for weight, original in zip(network.parameters(), source.parameters(), strict=True):
        generator = generator or torch.Generator(weight.device).manual_seed(seed)
        goes_back = torch.rand(weight.shape, generator=generator, device=weight.device) < share
        weight.copy_(torch.where(goes_back, original, weight))


def random_views(images: Tensor, draws: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Weak and strong views of whole images, all (B, 3, H, W) RGB in [0, 1]; the weak ones are mirrored or not."""
    view = RandomViews(crop=None, scale=(1, 1), strong=True)
    pixels = (images * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    drawn = [view(image, None, int(draws.integers(2**32))) for image in pixels]

    def to_tensor(stack: list[Any]) -> Tensor:
        return torch.from_numpy(np.stack(stack)).to(images).permute(0, 3, 1, 2) / 255

    return to_tensor([one.image for one in drawn]), to_tensor([one.strong for one in drawn])
