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


def rich_in_one_corner():
    """Twelve classes in the left upper corner, one everywhere else."""
    image = np.random.default_rng(0).integers(0, 256, (80, 120, 3), dtype=np.uint8)
    label = np.zeros((80, 120), dtype=np.uint8)
    label[:24, :32] = np.arange(24)[:, None] // 6 * 3 + np.arange(32)[None] // 11
    return image, label


def number_of_classes(view):
    return len(set(np.unique(view.label)) - {255})


def test_crops_with_enough_classes_are_looked_for():
    image, label = rich_in_one_corner()
    first = RandomViews((32, 48), (0.8, 1.2), strong=True)
    wanting = RandomViews((32, 48), (0.8, 1.2), strong=True, wanted_classes=4)
    enough = [0, 0]
    for seed in range(60):
        taken, looked_for = first(image, label, seed), wanting(image, label, seed)
        enough[0] += number_of_classes(taken) > 4
        enough[1] += number_of_classes(looked_for) > 4
        if number_of_classes(taken) > 4:  # the first crop is taken where it will do
            np.testing.assert_array_equal(taken.image, looked_for.image)
            np.testing.assert_array_equal(taken.strong, looked_for.strong)
    assert enough[0] < 30
    assert enough[1] > enough[0] + 15


def test_a_crop_that_was_looked_for_is_a_function_of_its_seed():
    image, label = rich_in_one_corner()
    views = RandomViews((32, 48), (0.8, 1.2), strong=True, wanted_classes=8)
    first = [views(image, label, seed) for seed in range(10)]
    for seed in reversed(range(10)):
        again = RandomViews((32, 48), (0.8, 1.2), strong=True, wanted_classes=8)(image, label, seed)
        for name in ("image", "label", "valid", "strong"):
            np.testing.assert_array_equal(getattr(first[seed], name), getattr(again, name))


@pytest.mark.parametrize(("wanted", "draws"), [(None, 1), (12, 1), (11, 10), (0, 1)])
def test_crops_are_drawn_ten_times_at_most_and_once_where_none_can_do(wanted, draws):
    """Of twelve classes in all, no crop has more than twelve; 8x8 of them never have all."""
    image, label = rich_in_one_corner()
    views = RandomViews((8, 8), (1.0, 1.0), strong=False, wanted_classes=wanted)
    drawn = []
    geometry = views.geometry

    class Counting:
        set_random_seed = staticmethod(geometry.set_random_seed)

        def __call__(self, **arguments):
            drawn.append(arguments)
            return geometry(**arguments)

    views.geometry = Counting()
    assert views(image, label, 0).label.shape == (8, 8)
    assert len(drawn) == draws


def test_without_a_label_or_a_crop_nothing_is_looked_for():
    image, label = rich_in_one_corner()
    plain, wanting = (RandomViews((32, 48), (1, 1), strong=False, wanted_classes=wanted) for wanted in (None, 12))
    np.testing.assert_array_equal(plain(image, None, 4).image, wanting(image, None, 4).image)
    whole = RandomViews(None, (1, 1), strong=False, wanted_classes=11)
    assert whole(image, label, 0).label.shape == label.shape
