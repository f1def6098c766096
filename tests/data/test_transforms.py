import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.data.transforms import RandomViews, resize_image, resize_label


def scene(height=40, width=60):
    """An image whose red and green channels are its coordinates, and a label that says the same."""
    rows, columns = np.mgrid[:height, :width].astype(np.uint8)
    image = np.stack([rows * 4, columns * 4, rows], axis=2)
    return image, (rows // 8).astype(np.uint8)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1))
def test_label_and_both_views_share_one_geometry(seed):
    image, label = scene()
    view = RandomViews((32, 32), (1.0, 1.0), strong=True)(image, label, seed)
    assert view.image.shape == view.strong.shape == (32, 32, 3)
    np.testing.assert_array_equal(view.label, view.image[..., 2] // 8)  # the label follows the image's own rows
    assert view.valid.all()


def test_a_view_is_a_function_of_its_seed():
    image, label = scene()
    views = RandomViews((24, 24), (0.5, 1.5), strong=True)
    first = views(image, label, 5)
    views(image, label, 6)
    again = RandomViews((24, 24), (0.5, 1.5), strong=True)(image, label, 5)
    for name in ("image", "label", "valid", "strong"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert len({views(image, label, seed).image.tobytes() for seed in range(20)}) > 15


def test_padding_is_ignored_and_not_valid():
    image, label = scene()
    view = RandomViews((64, 80), (0.5, 0.5), strong=False)(image + 1, label, 3)
    assert view.label.shape == (64, 80)
    assert view.valid.sum() == 20 * 30
    assert (view.label[~view.valid] == 255).all()
    assert (view.label[view.valid] < 255).all()
    assert (view.image[~view.valid] == 0).all()
    assert view.strong is None


def test_without_labels_there_is_none():
    image, _ = scene()
    assert RandomViews(None, (1, 1), strong=False)(image, None, 0).label is None


def test_strong_view_differs_but_keeps_the_geometry():
    image, label = scene()
    views = RandomViews((32, 48), (1.0, 1.0), strong=True)
    assert any((views(image, label, seed).strong != views(image, label, seed).image).any() for seed in range(5))


@pytest.mark.parametrize("size", [(20, 30), (80, 120), (33, 61)])
def test_resizing_keeps_the_scene(size):
    image, label = scene()
    resized = resize_image(image, size)
    assert resized.shape == (*size, 3)
    rows = (np.arange(size[0]) + 0.5) * 40 / size[0] - 0.5
    np.testing.assert_allclose(resized[2:-2, 5, 2], rows[2:-2], atol=1.0)
    labels = resize_label(label, size)
    assert labels.shape == size
    assert set(np.unique(labels)) == set(np.unique(label))
    assert resize_image(image, None) is image
