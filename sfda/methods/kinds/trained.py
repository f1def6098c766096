"""Methods that follow the gradient of named losses."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sfda.data.datasets import Batch, has_images
from sfda.data.sampling import run_seed
from sfda.errors import UserError, refuse_negative, refuse_outside
from sfda.methods.kinds.method import Method
from sfda.networks.batch_norm import average_running_statistics
from sfda.ranks import gather_over_ranks, largest_over_ranks

CHECKED_EVERY = 20
"""Optimizer steps between two looks for weights that are NaN; each look waits for the GPU."""


class TrainedMethod(Method):
    """A method with losses and an optimizer.

    Args:
        optimizer: ``sgd`` (Nesterov, as the papers) or ``adamw``.
        lr: Learning rate at the start.
        momentum: Momentum of SGD; AdamW's first beta.
        weight_decay: Weight decay.
        poly_power: The learning rate falls as (1 − step/steps)^power; 0 keeps it.
        warmup_steps: Steps over which the learning rate first rises linearly from a tenth.
        share: How far the model that is kept, ``selected.ckpt``, goes from the network that training began with to the
            one that was trained: weights = start + share · (trained − start), in [0, 1], BatchNorm's running statistics
            too; 1 is the method as published, ``auto`` chooses without labels (`sfda.judging.shares`). (WiSE-FT,
            Wortsman et al., arXiv 2109.01903, and model soups, arXiv 2203.05482, do this in classification.)
        **base: Options of `Method`.

    Raises:
        UserError: an option is out of its range.
    """

    def __init__(
        self,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        lr: float = 5e-5,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        poly_power: float = 0.9,
        warmup_steps: int = 0,
        share: float | Literal["auto"] = 1.0,
        **base: Any,
    ) -> None:
        super().__init__(**base)
        refuse_negative(lr=lr, weight_decay=weight_decay, poly_power=poly_power, warmup_steps=warmup_steps)
        refuse_outside(0, 1, "[)", momentum=momentum)
        if share != "auto" and not 0 <= share <= 1:
            raise UserError(f"model option share: auto, or a number from 0 to 1, not {share}")
        self.optimizer_name = optimizer
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.poly_power = poly_power
        self.warmup_steps = warmup_steps
        self.share = share
        self._steps_seen = 0
        self._names_of_step: list[str] = []
        self._steps_taken: list[tuple[int, list[str], Tensor]] = []

    @abstractmethod
    def compute_losses(self, batch: Batch) -> dict[str, Tensor]:
        """The weighted terms of the loss by name; their sum is minimised.

        Args:
            batch: ``{"target": {...}, "source": {...}}`` with the domains that the method reads.
        """

    def trainable_parameters(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimizer, each with a ``name``; called once, before DDP wraps the module."""
        return [{"name": "network", "params": list(self.network.parameters())}]

    def after_optimizer_step(self) -> None:
        """Called after a batch only when the optimizer really stepped: the place for EMA updates."""

    def set_modes(self) -> None:
        """Called before every batch, with the networks in train mode: what is frozen goes to eval mode here."""

    def make_ranks_equal(self) -> None:
        """Average over ranks what each of them moves by itself: called before anything is scored or saved.

        Here the running statistics of the network's BN layers; DDP keeps the parameters equal. A method with more of
        them than the network's extends it.
        """
        average_running_statistics(self.network)

    def paused_parameters(self) -> Iterable[nn.Parameter]:
        """Those of `trainable_parameters` that this step leaves alone.

        ``requires_grad`` must not change during a run: under DDP the ranks would silently diverge.
        """
        return ()

    def lr_factor(self, step: int) -> float:
        """Learning rate of an optimizer step as a multiple of `lr`: linear warm-up, polynomial decay."""
        warmup = self.warmup_factor(step)
        if step == 0:
            # Asking the Trainer for its steps builds the loaders; now is too early: a resumed run does not know its
            # epoch yet, and workers would prefetch another one.
            return warmup
        remaining = 1 - step / max(1, int(self.trainer.estimated_stepping_batches))
        return float(warmup * max(0.0, remaining) ** self.poly_power)

    def warmup_factor(self, step: int) -> float:
        """Linear from a tenth to 1 over `warmup_steps`."""
        return min(1.0, 0.1 + 0.9 * step / self.warmup_steps) if self.warmup_steps else 1.0

    def shared_draws(self) -> np.random.Generator:
        """Randomness of the current batch that is the same on all ranks, and again after a resume."""
        return np.random.default_rng([run_seed(), self.trainer.fit_loop.epoch_loop.total_batch_idx])

    def prepare_fit(self) -> None:
        """Initial weights; what is not trained asks for no gradient.

        Raises:
            UserError: there is no model to take a share of.
        """
        if self.share != 1 and self.source_checkpoint is None:
            raise UserError(
                f"model option share: {self.share} goes back towards the model that training begins with, and there is "
                "none: give --model.init_args.source_checkpoint, or share 1"
            )
        super().prepare_fit()
        self.train_only_what_is_trained()

    def train_only_what_is_trained(self) -> None:
        """`requires_grad` for `trainable_parameters` and nothing else."""
        trained = {id(parameter) for group in self.trainable_parameters() for parameter in group["params"]}
        for parameter in self.parameters():
            parameter.requires_grad_(id(parameter) in trained)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Sum and log the losses.

        What the model draws (dropout, mixing) is a function of seed, batch and rank, so that a resumed run draws it
        again.
        """
        if not has_images(batch):
            faults = "\n  ".join(fault for part in batch.values() for fault in part["skipped"])
            raise UserError(f"no pair of a whole training batch can be used:\n  {faults}")
        drawn = np.random.SeedSequence([run_seed(), self.trainer.fit_loop.epoch_loop.total_batch_idx, self.global_rank])
        torch.manual_seed(int(drawn.generate_state(1)[0]))
        self.set_modes()
        names = [name for part in batch.values() for name in part["name"]]
        self._names_of_step += names
        losses = self.compute_losses(batch)
        total = torch.stack(list(losses.values())).sum()
        if self.trainer.global_step == 0 and not total.isfinite():  # the one step that may wait for the GPU
            terms = ", ".join(f"{name} {float(loss):g}" for name, loss in losses.items())
            raise UserError(f"the first loss is {terms}, for {', '.join(names)}: {self.advice_against_nan}")
        size = len(next(iter(batch.values()))["name"])
        logged = {f"train/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(logged, on_step=True, batch_size=size)
        self.log("train/loss", total.detach(), on_step=True, prog_bar=True, batch_size=size)
        return total

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """An optimizer passes over a parameter without a gradient, momentum and decay included."""
        for parameter in self.paused_parameters():
            parameter.grad = None

    def on_train_start(self) -> None:
        """Count optimizer steps from where a resumed run stands."""
        self._steps_seen = self.trainer.global_step

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Under gradient accumulation most batches do not step."""
        if self.trainer.global_step > self._steps_seen:
            self._steps_seen = self.trainer.global_step
            self._steps_taken.append((self._steps_seen, self._names_of_step, self._weights_are_finite()))
            self._names_of_step = []
            self.after_optimizer_step()
            if self.trainer.global_step % CHECKED_EVERY == 0:
                self.refuse_diverged_weights()

    def refuse_diverged_weights(self) -> None:
        """No hours are spent on NaN, and no checkpoint holds it.

        To be called by all ranks, which stop together.

        Raises:
            UserError: a trained weight is NaN or infinite.
        """
        if not largest_over_ranks(1 - self._weights_are_finite().float()):
            self._steps_taken.clear()
            return
        taken = [entry for entry in self._steps_taken if not entry[2]][:1]
        names = gather_over_ranks([name for _, names, _ in taken for name in names])
        step = taken[0][0] if taken else self.trainer.global_step
        of = f", which took the images {', '.join(names)}" if names else ""
        last = self.run_folder / "last.ckpt"
        kept = f"; {last} holds the last weights that are numbers" if last.is_file() else ""
        raise UserError(
            f"{type(self).__name__}: weights are NaN or infinite after step {step}{of}: lower --model.init_args.lr, "
            f"and look at these images and at the losses in {self.run_folder / 'metrics.csv'}{kept}"
        )

    def _weights_are_finite(self) -> Tensor:
        """Whether all trained weights are numbers, without waiting for the device: () bool.

        A sum of squares is NaN or infinite where a weight is; it overflows for weights above 1e19 alone.
        """
        weights = [weight.detach() for group in self.trainable_parameters() for weight in group["params"]]
        return torch.stack(torch._foreach_norm(weights)).isfinite().all()

    def on_validation_start(self) -> None:
        """Every rank scores the same; what has diverged is not scored."""
        super().on_validation_start()
        if self.trainer.state.fn == "fit":
            self.refuse_diverged_weights()
        self.make_ranks_equal()

    def on_train_epoch_end(self) -> None:
        """The same for a checkpoint of an epoch without validation."""
        self.refuse_diverged_weights()
        self.make_ranks_equal()

    def configure_optimizers(self) -> Any:
        """The optimizer over `trainable_parameters`, with warm-up and polynomial decay."""
        groups = self.trainable_parameters()
        optimizer: torch.optim.Optimizer
        if self.optimizer_name == "sgd":
            optimizer = torch.optim.SGD(
                groups, self.lr, self.momentum, weight_decay=self.weight_decay, nesterov=self.momentum > 0
            )
        else:
            optimizer = torch.optim.AdamW(groups, self.lr, (self.momentum, 0.999), weight_decay=self.weight_decay)

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def count_trained(method: nn.Module) -> int:
    """Number of parameters that an optimizer moves."""
    if not isinstance(method, TrainedMethod):
        return 0
    return sum(parameter.numel() for group in method.trainable_parameters() for parameter in group["params"])
