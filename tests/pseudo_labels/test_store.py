import builtins
import io
import json
import pickle
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from sfda.data.datasets import TrainingSet
from sfda.errors import UserError
from sfda.pseudo_labels.labelling import _read_notes
from sfda.pseudo_labels.store import PseudoLabelStore, weights_hash

IDENTITY = {"method": "SelfTraining", "size": (4, 6), "class_fraction": 0.15}


@pytest.fixture
def store(tmp_path):
    opened = PseudoLabelStore(tmp_path / "labels of a run", IDENTITY)
    opened.open()
    return opened


def label(value=3):
    made = np.full((4, 6), value, dtype=np.uint8)
    made[0, 0] = 255
    return made


def again(store, **changes):
    """Another process on the same folder."""
    other = PseudoLabelStore(store.folder, {**IDENTITY, **changes})
    other.open()
    return other


def test_what_is_written_is_read(store):
    assert not store.has("a.b_1")
    store.write("a.b_1", label())
    assert store.has("a.b_1")
    assert store.labelled() == {"a.b_1"}
    assert sorted(path.name for path in store.folder.rglob("*")) == ["a.b_1.png", "labels", "manifest.json"]
    read = store.read("a.b_1")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, label())
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(store)).read("a.b_1"), label())  # in a loader's worker


def test_the_same_identity_goes_on(store, capsys):
    store.write("a", label())
    store.write_temporary("b", {"predicted": label(), "bins": np.arange(5, dtype=np.int16)})
    store.note({"thresholds": [1, 2]})
    other = again(store, size=[4, 6])
    assert other.has("a")
    assert other.notes == {"thresholds": [1, 2]}
    assert not other.complete
    arrays = other.read_temporary("b")
    assert list(arrays) == ["predicted", "bins"]
    assert arrays["bins"].dtype == np.int16
    np.testing.assert_array_equal(arrays["predicted"], label())
    other.remove_temporary("b")
    assert not other.has_temporary("b")
    other.finish({"coverage": 0.1 + 0.2})
    for finished in (other, again(store)):
        assert finished.complete
        assert finished.report == {"coverage": 0.1 + 0.2}
        assert finished.notes == {}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("complete", [False, True])
def test_another_identity_begins_anew_and_says_so(store, complete, capsys):
    store.write("a", label())
    store.write_temporary("b", {"bins": label()})
    store.note({"thresholds": [1]})
    if complete:
        store.finish({"coverage": 1.0})
    own = store.folder / "labels" / "notes of mine.txt"
    own.write_text("kept")
    other = again(store, class_fraction=0.2, weights="ab12")
    said = capsys.readouterr().out
    assert "remade" in said
    assert "another class_fraction, weights\n" in said
    assert not other.complete
    assert other.notes == other.report == {}
    assert [path for path in store.folder.rglob("*") if path.is_file() and path != own] == [
        store.folder / "manifest.json"
    ]
    assert own.read_text() == "kept"
    other.write("a", label(7))
    assert again(store, class_fraction=0.2, weights="ab12").read("a")[1, 1] == 7


class Killed(BaseException):
    pass


def kill_after(steps, patch):
    """Let so many files be moved or removed, then no more."""
    left = [steps]

    def counted(operation):
        def run(*arguments, **options):
            if not left[0]:
                raise Killed
            left[0] -= 1
            return operation(*arguments, **options)

        return run

    for name in ("replace", "unlink"):
        patch.setattr(Path, name, counted(getattr(Path, name)))


def test_killed_while_another_identity_is_removed(store, monkeypatch):
    """What is left of a set of labels is taken for a whole one by neither the old nor the new identity."""
    for name in "abc":
        store.write(name, label())
    store.finish({})
    saved = {path: path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}
    for steps in range(6):
        for path, content in saved.items():
            path.write_bytes(content)
        with monkeypatch.context() as patch:
            kill_after(steps, patch)
            if steps < 5:
                with pytest.raises(Killed):
                    again(store, class_fraction=0.5)
            else:
                again(store, class_fraction=0.5)
        old = again(store)
        assert old.complete == (steps == 0)
        assert old.labelled() == (set("abc") if steps == 0 else set())


def test_half_written_files_are_neither_read_nor_left(store, monkeypatch):
    store.write("a", label(1))

    def half(path, data):
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", half)
        for write in (lambda: store.write("a", label(2)), lambda: store.write("b", label(2))):
            with pytest.raises(Killed):
                write()
        with pytest.raises(Killed):
            store.write_temporary("a", {"bins": label()})
    assert store.labelled() == {"a"}
    assert store.temporaries() == set()
    assert store.read("a")[1, 1] == 1
    again(store, class_fraction=0.5)
    assert [path.name for path in store.folder.rglob("*") if path.is_file()] == ["manifest.json"]


# --------------------------------------------------------------------- what a user can mend


def test_a_missing_label(store):
    with pytest.raises(UserError, match=r"labels/a.png: cannot be opened.*delete .*made again"):
        store.read("a")


@pytest.mark.parametrize("damage", ["empty", "cut", "no png", "16 bits", "colours"])
def test_a_damaged_label(store, damage):
    store.write("a", label())
    path = store.folder / "labels" / "a.png"
    content = path.read_bytes()
    deep, colours = label().astype(np.uint16), np.stack([label()] * 3, axis=2)
    path.write_bytes(
        {
            "empty": b"",
            "cut": content[: len(content) // 2],
            "no png": b"text",
            "16 bits": cv2.imencode(".png", deep)[1].tobytes(),
            "colours": cv2.imencode(".png", colours)[1].tobytes(),
        }[damage]
    )
    with pytest.raises(UserError, match=r"a.png.*delete .*made again"):
        store.read("a")


@pytest.mark.parametrize("damage", ["empty", "cut", "no zip", "missing"])
def test_a_damaged_temporary(store, damage):
    store.write_temporary("a", {"bins": np.zeros((50, 50), dtype=np.int16)})
    path = store.folder / "confidences" / "a.npz"
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "cut": content[: len(content) // 2], "no zip": b"text", "missing": b""}[damage])
    if damage == "missing":
        path.unlink()
    with pytest.raises(UserError, match=r"a.npz cannot be read.*delete .*made again"):
        store.read_temporary("a")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"identity": {}}'])
def test_a_damaged_manifest(store, content):
    (store.folder / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest.json.*delete"):
        again(store)


def test_labels_without_a_manifest(store):
    store.write("a", label())
    (store.folder / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"a.png is there.*manifest.json.*move .* away"):
        again(store)
    assert store.has("a")


def test_a_full_disk(store, monkeypatch):
    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match=r"a.png cannot be written \(No space left on device; it needs.*make room"):
        store.write("a", label())


def test_labels_are_read_where_audit_hooks_see_it(store, monkeypatch):
    store.write("a", label())
    opened, real = [], io.open

    def spy(file, *arguments, **options):
        opened.append(Path(file).name)
        return real(file, *arguments, **options)

    monkeypatch.setattr(io, "open", spy)
    monkeypatch.setattr(builtins, "open", spy)
    store.read("a")
    assert opened == ["a.png"]


def test_a_label_of_a_class_that_there_is_not_is_refused(tmp_path):
    store = PseudoLabelStore(tmp_path, {"classes": ["a", "b"]})
    store.open()
    store.write("fine", np.array([[0, 1, 255]], dtype=np.uint8))
    store.write("wrong", np.array([[0, 2, 255]], dtype=np.uint8))
    assert store.read("fine").tolist() == [[0, 1, 255]]
    with pytest.raises(UserError, match=r"wrong\.png: holds values that are none of its 2 classes; delete"):
        store.read("wrong")


def test_a_label_of_another_size_than_its_image_is_refused(store):
    sample = SimpleNamespace(name="a", image=np.zeros((4, 6, 3), dtype=np.uint8), label=None)
    images = TrainingSet(SimpleNamespace(read=lambda index: sample), None, None, [0], store)
    store.write("a", np.zeros((4, 6), dtype=np.uint8))
    assert images[0, 0]["pseudo_label"].shape == (4, 6)
    store.write("a", np.zeros((6, 4), dtype=np.uint8))
    with pytest.raises(UserError, match=r"the pseudo-label of a and its image differ in size \(6x4 and 4x6"):
        images[0, 0]


@pytest.mark.parametrize("damage", [{"notes": [1]}, {"report": "x"}, {"identity": "x"}])
def test_a_manifest_of_other_parts_is_refused(damage, store):
    path = store.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage}))
    with pytest.raises(UserError, match=r"manifest\.json is no manifest of pseudo-labels: delete"):
        PseudoLabelStore(store.folder, IDENTITY).open()


@pytest.mark.parametrize("notes", [{"scaled": "x"}, {"scaled": [1.0], "unscaled": [1.0], "predicted": [1.0]}])
def test_notes_of_something_else_are_refused(notes, store):
    store.note(notes)
    with pytest.raises(UserError, match=r"manifest\.json notes no thresholds of 2 classes: delete"):
        _read_notes(store, 2)


# --------------------------------------------------------------------- processes, weights


def test_ranks_agree_and_only_rank_0_writes_the_manifest(on_two_ranks, tmp_path):
    folder = tmp_path / "store"
    PseudoLabelStore(folder, {"method": "old"}).open()

    def run(rank):
        store = PseudoLabelStore(folder, IDENTITY)
        written = []
        store._write_manifest = lambda content, real=store._write_manifest: (written.append(content), real(content))
        store.open()
        store.write(f"{rank}", label(rank))
        store.note({"x": 1})
        stored = json.loads((folder / "manifest.json").read_text())["notes"]
        store.finish({"coverage": 0.5})
        return [len(written), stored, store.complete, store.report, sorted(store.labelled())]

    one, other = on_two_ranks(run)
    assert one[0] == 4
    assert other[0] == 0
    assert one[1:] == other[1:] == [{"x": 1}, True, {"coverage": 0.5}, ["0", "1"]]


def test_weights_hash_sees_every_weight():
    def networks():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4)), torch.nn.Linear(2, 2)

    def changed(change):
        modules = networks()
        change(*modules)
        return weights_hash(*modules)

    hashes = [
        changed(lambda network, value_net: None),
        changed(lambda network, value_net: network[0].weight.data[0].mul_(1 + 1e-6)),
        changed(lambda network, value_net: network[1].running_mean[2].add_(1)),
        changed(lambda network, value_net: value_net.bias.data.neg_()),
        changed(lambda network, value_net: network.half()),
        changed(lambda network, value_net: network.bfloat16()),
        weights_hash(*reversed(networks())),
        weights_hash(networks()[0]),
    ]
    assert len(set(hashes)) == len(hashes)
    assert hashes[0] == weights_hash(*networks())
    assert len(hashes[0]) == 64
