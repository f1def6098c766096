"""Methods that label the target themselves before they train on it."""

import copy
import hashlib
from abc import abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import torch

from sfda.errors import UserError
from sfda.methods.kinds.trained import TrainedMethod
from sfda.networks.segmenter import eval_mode
from sfda.pseudo_labels.store import PseudoLabelStore, weights_hash
from sfda.runs.checkpoints import read_checkpoint


class PseudoLabelledMethod(TrainedMethod):
    """Pseudo-labels are made once, with the source model, before the loaders are built.

    They lie in ``pseudo_labels/`` of the run folder. A fit that is interrupted while it labels goes on where it was;
    labels made from other weights, of other classes or with other options are replaced.

    Class attributes:
        label_options: Names of the hyper-parameters that change the labels.

    Args:
        **trained: Options of `TrainedMethod`.
    """

    label_options: tuple[str, ...] = ()
    optimises: ClassVar[tuple[str, ...]] = ("entropy",)

    def __init__(self, **trained: Any) -> None:
        super().__init__(**trained)
        self._source_hash = ""

    @abstractmethod
    def make_labels(self, store: PseudoLabelStore) -> None:
        """Label every target training image.

        Called on all ranks with the weights of the source model, on the device, in eval mode, without gradients.
        """

    def prepare_fit(self) -> None:
        """Initial weights, then labels; a resumed run uses those it has.

        Raises:
            UserError: a resumed run needs new labels, and what they were made from has changed.
        """
        self.to(self.trainer.strategy.root_device)
        resumed = self.trainer.ckpt_path is not None
        super().prepare_fit()
        if resumed:
            self._source_hash = read_checkpoint(str(self.trainer.ckpt_path))["source_hash"]
        else:
            self._source_hash = weights_hash(self)
        store = PseudoLabelStore(self.run_folder / "pseudo_labels", self._identity())
        store.open()
        if not store.complete:
            self._try_train_mode()
            if resumed:  # its own weights are loaded later
                self.initialise_from_source()
                if weights_hash(self) != self._source_hash:
                    raise UserError(
                        f"the pseudo-labels in {store.folder} have to be made again, and {self.source_checkpoint} with "
                        "these options and images no longer gives the weights that this run began with: restore what "
                        "has changed, or start again with another --out"
                    )
            with eval_mode(self), torch.no_grad():
                self.make_labels(store)
        self.pseudo_labels = store

    def _try_train_mode(self) -> None:
        """What BatchNorm layers refuse of a training batch is found before hours of labelling, on a copy."""
        data = self.datamodule
        height, width = data.crop or data.size or (128, 128)
        images = self.network.mean.expand(min(data.batch_size, 2), -1, height, width)
        with torch.no_grad():
            copy.deepcopy(self.network).train()(images)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What the labels were made from."""
        checkpoint["source_hash"] = self._source_hash

    def _identity(self) -> dict[str, Any]:
        data = self.datamodule
        names = "\n".join(pair.name for pair in data.training_sets["target"].pairs)
        return {
            "method": type(self).__name__,
            "source_weights": self._source_hash,
            "classes": list(data.classes.names),
            "images": asdict(data.training_sets["target"].domain),
            "image_names": hashlib.sha256(names.encode()).hexdigest(),
            "size": list(data.size) if data.size else None,
            **{option: self.hparams[option] for option in self.label_options},
        }
