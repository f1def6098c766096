import os
import shutil
import signal
from collections import namedtuple
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sfda.errors import UserError
from sfda.pseudo_labels.labelling import label_by_argmax, label_by_class_balance
from sfda.pseudo_labels.store import PseudoLabelStore

CLASSES, SIZE = 5, (6, 8)
FRACTIONS = {"class_fraction": 0.15, "image_fraction": 0.1}


def make_images(count=5, size=SIZE, seed=0):
    """Images of noise by name; their values decide what `probabilities_of` gives."""
    generator = torch.Generator().manual_seed(seed)
    return {f"town_{i:02d}.x": torch.rand(3, *size, generator=generator) for i in range(count)}


def batches_of(images, batch_size=2, rank=0, world_size=1):
    """Batches of every world_size-th image, as `plain_batches` gives them."""
    names = sorted(images)[rank::world_size]
    for start in range(0, len(names), batch_size):
        part = names[start : start + batch_size]
        yield {"name": part, "image": torch.stack([images[name] for name in part]), "skipped": []}


def probabilities_of(images, num_classes=CLASSES):
    """Differing mixes of the colours, never the last class where there are more than two.

    The bits of a result do not depend on who shares the batch.
    """
    mix = torch.linspace(-4, 9, 3 * num_classes).sin().view(num_classes, 3)
    logits = torch.stack([8 * torch.einsum("ck,khw->chw", mix, image) for image in images])
    if num_classes > 2:
        logits[:, -1] = -50
    return logits.softmax(1)


def scale_of(images):
    return images.mean((1, 2, 3)) ** 2 + 0.3


def scaled(images):
    return probabilities_of(images), scale_of(images)


def unscaled(images):
    return probabilities_of(images), None


def open_store(folder, **identity):
    store = PseudoLabelStore(folder, identity)
    store.open()
    return store


def label_all(folder, images, predict=scaled, num_classes=CLASSES, batch_size=2, **fractions):
    store = open_store(folder)
    batches = batches_of(images, batch_size)
    label_by_class_balance(store, batches, predict, num_classes, **{**FRACTIONS, **fractions}, images=len(images))
    return store


def written(folder):
    """Content of every file of a store."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


# --------------------------------------------------------------------- against two passes over everything


def threshold(values, fraction):
    """The value of the last of the top `fraction`; 0.5 where there are none."""
    wanted = ceil(fraction * len(values) - 1e-9)
    return sorted(values)[-wanted] if len(values) else 0.5


def two_passes(images, predict, num_classes, class_fraction, image_fraction):
    """Labels and report by the definitions, on confidences rounded down to multiples of 1/2048."""
    classes, s, conf = {}, {}, {}
    for name, image in images.items():
        probabilities, scale = predict(image[None])
        p = probabilities[0].numpy()
        classes[name], confidence = p.argmax(0), p.max(0)
        conf[name] = np.minimum(np.floor(confidence * np.float32(2048)), 2047) / 2048
        factor = np.float32(1) if scale is None else scale[0].numpy()
        s[name] = np.minimum(np.floor(confidence * factor * np.float32(2048)), 2047) / 2048

    def of_class(values, c):
        return [v for name in images for v in values[name][classes[name] == c].tolist()]

    thresholds = [threshold(of_class(s, c), class_fraction) for c in range(num_classes)]
    labels = {}
    for name in images:
        of_image = threshold(s[name].flatten().tolist(), image_fraction)
        labels[name] = np.full(s[name].shape, 255, dtype=np.uint8)
        for place, c in np.ndenumerate(classes[name]):
            if s[name][place] >= thresholds[c] or s[name][place] >= of_image:
                labels[name][place] = c
    everything = np.concatenate([label.flatten() for label in labels.values()])
    labelled = np.array([(everything == c).sum() for c in range(num_classes)])
    predicted = np.array([sum((classes[name] == c).sum() for name in images) for c in range(num_classes)])
    return labels, {
        "thresholds": thresholds,
        "unscaled_thresholds": [threshold(of_class(conf, c), class_fraction) for c in range(num_classes)],
        "realised_fraction": [m / n if n else 0 for m, n in zip(labelled, predicted, strict=True)],
        "labelled_share": labelled / labelled.sum(),
        "coverage": labelled.sum() / len(everything),
    }


def check(store, expected):
    labels, report = expected
    assert store.complete
    assert store.labelled() == set(labels)
    for name, label in labels.items():
        np.testing.assert_array_equal(store.read(name), label)
    assert store.report.keys() == report.keys()
    for key, value in report.items():
        np.testing.assert_allclose(store.report[key], value, rtol=1e-12, err_msg=key)
    assert not (store.folder / "confidences").exists()


@given(
    seed=st.integers(0, 10_000),
    num_classes=st.sampled_from([2, 3, 19, 150]),
    predict=st.sampled_from(["scaled", "unscaled", "equal", "saturated"]),
    size=st.sampled_from([(1, 1), (3, 4), (7, 5)]),
    class_fraction=st.sampled_from([0.01, 0.15, 0.2, 1.0]),
    image_fraction=st.sampled_from([0.01, 0.1, 0.5]),
)
@settings(deadline=None, max_examples=25)
def test_against_two_passes(tmp_path_factory, seed, num_classes, predict, size, class_fraction, image_fraction):
    def function(images):
        probabilities = probabilities_of(images, num_classes)
        if predict == "equal":
            probabilities = torch.zeros_like(probabilities)
            probabilities[:, :2] = 0.5
        elif predict == "saturated":
            probabilities = (probabilities == probabilities.amax(1, keepdim=True)).float()
        return probabilities, scale_of(images) if predict == "scaled" else None

    images = make_images(4, size, seed)
    fractions = {"class_fraction": class_fraction, "image_fraction": image_fraction}
    store = label_all(tmp_path_factory.mktemp("store"), images, function, num_classes, 3, **fractions)
    check(store, two_passes(images, function, num_classes, **fractions))


def test_the_scale_ranks_images(tmp_path):
    """Confidence 0.9 in an image believed to be wrong counts less than 0.6 in one believed to be right."""
    probabilities = torch.tensor([[0.9, 0.1], [0.6, 0.4]])[:, :, None, None].expand(2, 2, 4, 4)

    def predict(images):
        return probabilities[images[:, 0, 0, 0].long()], torch.tensor([0.5, 1.0])[images[:, 0, 0, 0].long()]

    images = {"wrong": torch.zeros(3, 4, 4), "right": torch.ones(3, 4, 4)}
    store = label_all(tmp_path, images, predict, 2, class_fraction=0.5, image_fraction=0)
    assert (store.read("right") == 0).all()
    assert (store.read("wrong") == 255).all()
    assert store.report["thresholds"] == [int(0.6 * 2048) / 2048, 0.5]
    assert store.report["unscaled_thresholds"] == [int(0.9 * 2048) / 2048, 0.5]


def test_images_of_different_sizes(tmp_path):
    images = {f"{i}": torch.rand(3, 4 + i, 9 - i) for i in range(4)}
    store = label_all(tmp_path, images, batch_size=1)
    check(store, two_passes(images, scaled, CLASSES, **FRACTIONS))


def test_half_precision_and_fractions_of_zero(tmp_path):
    images = make_images()
    store = label_all(tmp_path / "half", images, lambda x: (probabilities_of(x).bfloat16(), None))
    assert 0.15 < store.report["coverage"] < 1
    store = label_all(tmp_path / "none", images, class_fraction=0, image_fraction=0)
    assert store.report["coverage"] == 0
    assert store.report["labelled_share"] == [0] * CLASSES


def test_by_argmax(tmp_path):
    images, store = make_images(), open_store(tmp_path)
    label_by_argmax(store, batches_of(images), probabilities_of)
    expected = {name: probabilities_of(image[None])[0].numpy().argmax(0) for name, image in images.items()}
    for name, label in expected.items():
        np.testing.assert_array_equal(store.read(name), label)
    counts = np.bincount(np.stack(list(expected.values())).flatten())
    assert store.complete
    assert store.report["class_share"] == {str(c): n / counts.sum() for c, n in enumerate(counts.tolist()) if n}


# --------------------------------------------------------------------- killed

METHODS = {
    "argmax": lambda store, images: label_by_argmax(store, batches_of(images), probabilities_of),
    "class_balance": lambda store, images: label_by_class_balance(
        store, batches_of(images), scaled, CLASSES, **FRACTIONS, images=len(images)
    ),
}


def in_a_process_killed_at(step, function):
    """Run a function in a fork that gets SIGKILL before its n-th file is written, moved or removed; its signal."""
    child = os.fork()
    if child == 0:
        left = [step]

        def counted(operation):
            def run(path, *arguments):
                if not left[0]:
                    if operation.__name__ == "write_bytes":
                        operation(path, arguments[0][: len(arguments[0]) // 2])
                    os.kill(os.getpid(), signal.SIGKILL)
                left[0] -= 1
                return operation(path, *arguments)

            return run

        for name in ("write_bytes", "replace", "unlink"):
            setattr(Path, name, counted(getattr(Path, name)))
        try:
            function()
        finally:
            os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


@pytest.mark.medium
@pytest.mark.parametrize("method", METHODS)
def test_killed_at_every_step(method, tmp_path):
    images, label = make_images(), METHODS[method]
    label(open_store(tmp_path / "whole"), images)
    expected, step = written(tmp_path / "whole"), 0
    while True:
        folder = tmp_path / f"{step}"
        if in_a_process_killed_at(step, lambda folder=folder: label(open_store(folder), images)) == 0:
            break
        assert not open_store(folder).complete
        if step % 3 == 0 and step < 9:  # and a second time
            in_a_process_killed_at(3, lambda folder=folder: label(open_store(folder), images))
            assert not open_store(folder).complete
        label(open_store(folder), images)
        assert written(folder) == expected
        assert open_store(folder).report == open_store(tmp_path / "whole").report
        step += 1
    assert step == {"argmax": 14, "class_balance": 31}[method]


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_pass_predicts_only_what_is_missing(method, tmp_path, monkeypatch):
    """Killed in the third of three batches: the other two are not predicted again."""
    images, predicted = make_images(6), []

    def spy(name):
        real = globals()[name]

        def run(batch, *arguments):
            predicted.append(len(batch))
            if len(predicted) == 3:
                raise KeyboardInterrupt
            return real(batch, *arguments)

        return run

    monkeypatch.setitem(globals(), "probabilities_of", spy("probabilities_of"))
    store = open_store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        METHODS[method](store, images)
    assert len(predicted) == 3
    METHODS[method](open_store(tmp_path), images)
    assert len(predicted) == 4


def test_thresholds_of_a_killed_process_stay(tmp_path):
    """In the second phase neither the network nor the images are looked at again."""
    images = make_images()
    expected = written(label_all(tmp_path / "whole", images).folder)
    folder = tmp_path / "killed"
    assert in_a_process_killed_at(20, lambda: label_all(folder, images)) == signal.SIGKILL
    store = open_store(folder)
    assert store.notes
    assert 0 < len(store.labelled()) < 5
    label_by_class_balance(store, iter(()), None, CLASSES, **FRACTIONS, images=5)
    assert written(folder) == expected


def test_another_identity_is_labelled_anew(tmp_path, capsys):
    images = make_images()
    label_all(tmp_path, images)
    store = open_store(tmp_path, weights="others")
    assert "another weights" in capsys.readouterr().out
    label_by_class_balance(store, batches_of(images), unscaled, CLASSES, **FRACTIONS, images=5)
    check(store, two_passes(images, unscaled, CLASSES, **FRACTIONS))


# --------------------------------------------------------------------- what a user can mend


@pytest.mark.parametrize("option", FRACTIONS)
def test_fractions_out_of_range(option, tmp_path):
    for value in (-0.1, 1.5, float("nan")):
        with pytest.raises(UserError, match=option):
            label_all(tmp_path, make_images(), **{option: value})


@pytest.mark.parametrize("predict", ["scaled", "unscaled", "argmax"])
def test_nan_is_refused(predict, tmp_path):
    images = make_images()
    images["town_03.x"][0, 2, 2] = torch.nan
    label = {
        "argmax": lambda: METHODS["argmax"](open_store(tmp_path), images),
        "unscaled": lambda: label_all(tmp_path, images, unscaled),
        "scaled": lambda: label_all(tmp_path, images, lambda x: (probabilities_of(x.nan_to_num()), scale_of(x))),
    }[predict]
    with pytest.raises(UserError, match=r"NaN or infinity for town_03\.x: check the source checkpoint"):
        label()


def test_a_full_disk_is_seen_before(tmp_path, monkeypatch):
    # 3 bytes a pixel, and 8 for each place of a histogram, which here has no more places than there are pixels.
    needed = 5 * 48 * (3 + 8)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, needed - 1))
    with pytest.raises(UserError, match=rf"{tmp_path}.*5 images.*make room"):
        label_all(tmp_path, make_images())
    assert open_store(tmp_path).temporaries() == set()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, needed))
    label_all(tmp_path, make_images())


def test_the_disk_need_is_an_upper_bound(tmp_path):
    size = (64, 96)
    images = make_images(2, size)
    with pytest.raises(KeyboardInterrupt):
        label_by_class_balance(
            open_store(tmp_path), stop_after(batches_of(images)), scaled, CLASSES, **FRACTIONS, images=2
        )
    held = sum(path.stat().st_size for path in (tmp_path / "confidences").iterdir())
    assert 3 * 2 * 64 * 96 < held < (3 + 8) * 2 * 64 * 96


def stop_after(batches):
    yield from batches
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["cut", "missing"])
def test_a_damaged_temporary_is_named(damage, tmp_path):
    images = make_images()
    with pytest.raises(KeyboardInterrupt):
        label_by_class_balance(
            open_store(tmp_path), stop_after(batches_of(images)), scaled, CLASSES, **FRACTIONS, images=5
        )
    path = tmp_path / "confidences" / "town_01.x.npz"
    if damage == "missing":  # before there are thresholds it is simply made again
        path.unlink()
        check(label_all(tmp_path, images), two_passes(images, scaled, CLASSES, **FRACTIONS))
        return
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"town_01.x.npz cannot be read"):
        label_all(tmp_path, images)


# --------------------------------------------------------------------- processes


@pytest.mark.parametrize("count", [1, 5, 8])
def test_two_ranks_label_as_one_process(count, on_two_ranks, tmp_path):
    """One batch against none, three against two, four against four."""
    images = make_images(count)
    alone = label_all(tmp_path / "alone", images, batch_size=1)

    def run(rank):
        store = open_store(tmp_path / "two")
        batches = batches_of(images, 1, rank, 2)
        label_by_class_balance(store, batches, scaled, CLASSES, **FRACTIONS, images=count)
        argmax = open_store(tmp_path / "argmax")
        label_by_argmax(argmax, batches_of(images, 1, rank, 2), probabilities_of)
        return [store.report, argmax.report]

    reports = on_two_ranks(run)
    assert reports[0] == reports[1]
    assert reports[0][0] == alone.report
    assert written(tmp_path / "two") == written(tmp_path / "alone")
    argmax = open_store(tmp_path / "argmax one")
    label_by_argmax(argmax, batches_of(images, 1), probabilities_of)
    assert written(tmp_path / "argmax") == written(tmp_path / "argmax one")
    assert argmax.report == reports[0][1]


def test_two_ranks_go_on_where_one_process_was_killed(on_two_ranks, tmp_path):
    images = make_images()
    expected = written(label_all(tmp_path / "whole", images, batch_size=1).folder)
    for step in (6, 20):  # in the first phase, in the second
        folder = tmp_path / f"{step}"
        in_a_process_killed_at(step, lambda folder=folder: label_all(folder, images, batch_size=1))

        def run(rank, folder=folder):
            store = open_store(folder)
            batches = batches_of(images, 1, rank, 2)
            label_by_class_balance(store, batches, scaled, CLASSES, **FRACTIONS, images=5)

        on_two_ranks(run)
        assert written(folder) == expected
        (tmp_path / "rendezvous").unlink(missing_ok=True)
