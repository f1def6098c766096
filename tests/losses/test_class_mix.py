import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.losses.class_mix import class_halves, paste


def random_labels(seed, classes, batch=3, size=(6, 7), ignored=0.2):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (batch, *size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return labels


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(1, 150),
    size=st.sampled_from([(1, 1), (6, 7)]),
    ignored=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.int64, torch.uint8]),
)
def test_both_halves_are_whole_classes(seed, classes, size, ignored, dtype):
    labels = random_labels(seed, classes, size=size, ignored=ignored)
    half, rest = class_halves(labels.to(dtype), classes)
    for label, one, other in zip(labels.numpy(), half.numpy(), rest.numpy(), strict=True):
        present = set(np.unique(label)) - {255}
        chosen, left = set(np.unique(label[one])), set(np.unique(label[other]))
        assert len(chosen) == (len(present) + 1) // 2
        assert chosen | left == present
        assert not chosen & left
        assert np.array_equal(one, np.isin(label, list(chosen)))
        assert np.array_equal(other, np.isin(label, list(left)))


def test_every_class_is_drawn_equally_often():
    labels = torch.arange(5).repeat(2000, 1).view(2000, 1, 5)
    torch.manual_seed(0)
    half, _ = class_halves(labels, 9)
    assert (half.double().mean(dim=(0, 1)) - 3 / 5).abs().max() < 0.05


def test_draws_follow_the_global_seed():
    labels = random_labels(0, 19, batch=4)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(class_halves(labels, 19)[0])
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_images_are_drawn_apart():
    torch.manual_seed(0)
    half, _ = class_halves(random_labels(0, 19, batch=1).expand(20, -1, -1), 19)
    assert len({tuple(image.flatten().tolist()) for image in half}) > 10


def test_paste():
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(2, 3, 4, generator=generator) < 0.5
    for channels in ((), (5,)):
        above, below = torch.rand(2, 2, *channels, 3, 4, generator=generator)
        got = paste(mask, above, below)
        for b in range(2):
            for y in range(3):
                for x in range(4):
                    expected = above if mask[b, y, x] else below
                    assert torch.equal(got[b, ..., y, x], expected[b, ..., y, x])
