"""The look for weights that are NaN, after every optimizer step, against that step."""

import torch

from report import milliseconds, row
from sfda.methods.source_training import SourceTraining

BATCH, SIZE, CLASSES = 8, (96, 192), 19
NETWORK = "deeplab_v2_resnet18"
MOST = 0.02
"""Part of a step that the look may take."""


def test_weight_check():
    torch.set_num_threads(1)
    method = SourceTraining(network=NETWORK, num_classes=CLASSES)
    method.log_dict = lambda *_, **__: None
    optimizer = torch.optim.SGD(method.trainable_parameters(), 1e-3, momentum=0.9)
    generator = torch.Generator().manual_seed(0)
    batch = {
        "source": {
            "image": torch.rand(BATCH, 3, *SIZE, generator=generator),
            "label": torch.randint(0, CLASSES, (BATCH, *SIZE), generator=generator),
            "valid": torch.ones(BATCH, *SIZE, dtype=torch.bool),
            "name": [str(number) for number in range(BATCH)],
        }
    }

    def step():
        optimizer.zero_grad()
        torch.stack(list(method.compute_losses(batch).values())).sum().backward()
        optimizer.step()

    look, training = milliseconds(method._weights_are_finite, repeats=20), milliseconds(step)
    row("look for weights that are NaN", look, f"training step of {NETWORK}", training)
    assert look < MOST * training
