"""Label calibration that follows a stream, each batch predicted and then learnt from, against prediction alone."""

from collections.abc import Iterator
from types import SimpleNamespace

import torch

from sfda.methods.label_calibration import LabelCalibration
from sfda.methods.source_only import SourceOnly
from side_by_side import Row, Where, cost

CLASSES = 19
NEEDS_NETWORK, ON_GPU = True, True


def rows(where: Where) -> Iterator[Row]:
    for network in dict.fromkeys((where.network, "deeplab_v2_resnet101" if where.device == "cpu" else where.network)):
        options = {"network": network, "num_classes": CLASSES}
        plain = SourceOnly(**options).to(where.device).eval()
        ours = LabelCalibration(online=True, **options).to(where.device).eval()
        ours._trainer = SimpleNamespace(state=SimpleNamespace(fn="validate"), limit_val_batches=1.0)
        ours._has_run_weights = True
        images = torch.rand(1, 3, *(2 * side for side in where.size), device=where.device)

        def predict_and_learn(method: LabelCalibration = ours, images: torch.Tensor = images) -> None:
            with torch.inference_mode(), where.autocast():
                method.predict_probabilities(images)
                method.adapt_online(images)

        ours.on_validation_start()
        name = f"label calibration online, {network.rpartition(':')[2]} 1x{images.shape[-2]}x{images.shape[-1]}"
        yield cost(
            name,
            predict_and_learn,
            "the same forward alone",
            lambda plain=plain, images=images: predict(plain, images, where),
            1.1,
            where,
        )


@torch.inference_mode()
def predict(method: SourceOnly, images: torch.Tensor, where: Where) -> None:
    """Logits, softmax."""
    with where.autocast():
        method.predict_probabilities(images)
