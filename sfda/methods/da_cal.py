"""A mean teacher whose soft labels are calibrated by a network that learns to give temperatures."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from typing_extensions import override

from sfda.data.datasets import Batch
from sfda.data.label_spaces import IGNORE
from sfda.data.needs import Needs
from sfda.errors import refuse_negative, refuse_outside
from sfda.losses.class_mix import paste
from sfda.losses.cross_entropy import cross_entropy
from sfda.losses.soft_cross_entropy import soft_cross_entropy
from sfda.methods.kinds.taught import Mix, TaughtMethod
from sfda.metrics.functional import at_least_float32
from sfda.networks.segmenter import BACKBONE, HEAD_INPUT, Segmenter
from sfda.networks.temperature_net import TemperatureNet
from sfda.ranks import ALL_RANKS, at_once, mean_over_ranks

Parameters = Mapping[str, Tensor]


class MetaBatch(NamedTuple):
    """What the loss after a virtual step is made of; nothing in it carries a gradient."""

    features: Tensor
    """(B, D, h, w) of the teacher, on the target images."""
    logits: Tensor
    """(B, C, H, W) of the teacher."""
    mix: Mix
    inner: Tensor
    """(B, D', h', w') what the student's head is given for the mixes."""
    outer: Tensor
    """(B, D', h', w') the same for the complementary mixes."""
    labels: Tensor
    """(B, H, W) of the complementary mixes, 255 = unlabelled."""


class DACal(TaughtMethod):
    """Mean teacher with soft labels softmax(z / T), whose temperatures T a network ψ learns by bi-level optimisation.

    DA-Cal (arXiv 2602.20860), implemented from the published description. Every step first improves ψ: the student
    takes a virtual step on the mixes, ``θ'(ψ) = θ − η ∇_θ L(θ; mixes, ỹ(ψ))``, of its head alone; ψ follows the
    gradient of the cross-entropy of θ'(ψ) on the complementary mixes, onto which the other half of the source classes
    is pasted, at those labelled source pixels. Then the student takes its real step, on the labels of the new ψ.

    The temperatures act on the teacher's labels alone: predictions are the student's, at no further cost. A checkpoint
    holds ψ, and the state of its optimizer (Adam), so that a run can be resumed. Steps are counted, and gradients
    accumulated and clipped, for the student alone; ψ takes one step per batch.

    Nothing published names η, the learning rate of ψ or the width of its network: their defaults are this project's.

    Args:
        temperature_lr: Learning rate of ψ; with 0 every T stays 1.
        virtual_lr: η, learning rate of the virtual step.
        hidden: Width of ψ, see `TemperatureNet`.
        **taught: Options of `TaughtMethod`.

    Raises:
        UserError: an option is out of its range.
    """

    needs = Needs(source="labels", target="images", view="weak_and_strong")

    def __init__(self, temperature_lr: float = 1e-3, virtual_lr: float = 1e-2, hidden: int = 32, **taught: Any) -> None:
        super().__init__(**taught)
        refuse_negative(temperature_lr=temperature_lr, virtual_lr=virtual_lr)
        refuse_outside(1, math.inf, hidden=hidden)
        self.temperature_lr = temperature_lr
        self.virtual_lr = virtual_lr
        self.network.feature_channels(HEAD_INPUT)  # a network without a head is found now
        # Its parameters ask for no gradient, and are no part of the student's optimizer: DDP would wait for them.
        self.temperature = TemperatureNet(
            self.network.feature_channels(), taught["num_classes"], hidden, self.network.multiple
        )
        self.temperature.requires_grad_(False)
        self._temperature_optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None

    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Improve the temperatures; then ``mix`` with the new ones, and ``ce`` of source images where they are read."""
        logits, features = map(at_least_float32, self.teacher(batch["target"]["image"], BACKBONE))
        mix = self.mix(batch, logits.softmax(dim=1))
        student, head_input = self.network(self.student_images(batch, mix), HEAD_INPUT)
        inner = at_least_float32(head_input.detach()[-len(mix.images) :])
        outer = at_least_float32(self.complementary_head_input(batch, mix))
        meta = MetaBatch(features, logits, mix, inner, outer, self.outer_labels(batch, mix))
        with torch.autocast(logits.device.type, enabled=False):
            outer_loss = self.improve_temperatures(meta)
            temperatures = self.temperature(features, logits)
        facts = {"train/outer": outer_loss, "train/temperature": temperatures.mean()}
        self.log_dict(facts, on_step=True, batch_size=len(logits))
        return self.student_losses(student, batch, mix, (logits / temperatures).softmax(dim=1))

    def improve_temperatures(self, meta: MetaBatch) -> Tensor:
        """One step of ψ along the gradient of `outer_loss`, averaged over ranks; gives the loss before it."""
        psi = {name: value.detach().requires_grad_() for name, value in self.temperature.named_parameters()}
        loss = self.outer_loss(meta, psi)
        gradients = at_once(mean_over_ranks, torch.autograd.grad(loss, list(psi.values())))
        for parameter, gradient in zip(self.temperature.parameters(), gradients, strict=True):
            parameter.grad = gradient
        self.temperature_optimizer.step()
        self.temperature_optimizer.zero_grad()
        return loss.detach()

    def outer_loss(self, meta: MetaBatch, psi: Parameters) -> Tensor:
        """Cross-entropy, on the complementary mixes, of the student after a virtual step on the labels of ψ.

        Args:
            meta: At least float32; no autocast should be at work.
            psi: Parameters of the temperature network by name; the loss can be differentiated by them.
        """
        head, size = Head(self.network), meta.logits.shape[-2:]
        theta = {name: at_least_float32(value.detach()).requires_grad_() for name, value in head.named_parameters()}
        temperatures = functional_call(self.temperature, dict(psi), (meta.features, meta.logits))
        targets = self.mixed_targets(meta.mix, (meta.logits / temperatures).softmax(dim=1))
        inner = soft_cross_entropy(head.at(theta, meta.inner, size), targets, meta.mix.weight, meta.mix.valid)
        gradients = torch.autograd.grad(inner, list(theta.values()), create_graph=True)
        moved = {
            name: value - self.virtual_lr * gradient
            for (name, value), gradient in zip(theta.items(), gradients, strict=True)
        }
        return cross_entropy(head.at(moved, meta.outer, size), meta.labels, ALL_RANKS)

    @torch.no_grad()
    def complementary_head_input(self, batch: Batch, mix: Mix) -> Tensor:
        """What the student's head is given for the complementary mixes, (B, D', h', w')."""
        images = paste(mix.rest, mix.donors.images, batch["target"]["strong"])
        # On copies: BN statistics would otherwise move a second time.
        buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        head_input: Tensor = functional_call(self.network, buffers, (images, HEAD_INPUT))[1]
        return head_input

    def outer_labels(self, batch: Batch, mix: Mix) -> Tensor:
        """Labels (B, H, W) of the complementary mixes: those of the pasted source pixels, 255 elsewhere."""
        return mix.donors.classes.where(mix.rest, IGNORE)

    @property
    def temperature_optimizer(self) -> torch.optim.Optimizer:
        """Adam over ψ; made at its first step, when the parameters are where they are trained."""
        if self._temperature_optimizer is None:
            self._temperature_optimizer = torch.optim.Adam(self.temperature.parameters(), self.temperature_lr)
            if self._optimizer_state is not None:
                self._temperature_optimizer.load_state_dict(self._optimizer_state)
        return self._temperature_optimizer

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Lightning saves the student's optimizer alone; one beside it is no business of automatic optimisation."""
        super().on_save_checkpoint(checkpoint)
        if "optimizer_states" in checkpoint:
            checkpoint["temperature_optimizer"] = self.temperature_optimizer.state_dict()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._optimizer_state = checkpoint.get("temperature_optimizer")


class Head(nn.Module):
    """The head of a segmenter as a function of its parameters, which are all that this module has."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.head = network.head
        self._network = (network,)  # a tuple: no submodule

    def forward(self, head_input: Tensor, size: Sequence[int]) -> Tensor:
        """Logits (B, C, H, W) at `size` (H, W) from the head's input (B, D, h, w)."""
        return self._network[0].apply_head(head_input, size)

    def at(self, parameters: Parameters, head_input: Tensor, size: Sequence[int]) -> Tensor:
        """The same with other parameters, and on copies of the buffers."""
        buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
        logits: Tensor = functional_call(self, {**parameters, **buffers}, (head_input, size))
        return logits
