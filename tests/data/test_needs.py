import ast
import re
from pathlib import Path

import pytest

import sfda.data
from sfda.data.needs import Needs
from sfda.errors import UserError


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "image"}, "target: one of 'nothing', 'images', 'labels', not 'image'; did you mean images?"),
        (
            {"source": "target_labels"},
            "source: one of 'nothing', 'images', 'labels', not 'target_labels'; did you mean",
        ),
        ({"target": None}, "target: one of 'nothing', 'images', 'labels', not None"),
        ({"split": "test"}, "split: one of 'train', 'val', not 'test'"),
        ({"view": "strong"}, "view: one of 'plain', 'weak', 'weak_and_strong', not 'strong'"),
        ({"wanted_classes": 0}, "wanted_classes: None or a number from 1 up, not 0"),
    ],
)
def test_a_word_that_does_not_exist_is_refused_where_it_is_written(given, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Needs(**given)


@pytest.mark.parametrize(
    ("needs", "source_free", "labels", "text"),
    [
        (Needs(), True, None, "nothing"),
        (Needs(target="images"), True, None, "target images"),
        (Needs(source="images"), False, None, "source images"),
        (Needs(target="labels"), True, "target", "target labels"),
        (Needs(source="labels", target="images"), False, "source", "source labels and target images"),
        (Needs(source="labels", target="labels"), False, "source+target", "source labels and target labels"),
    ],
)
def test_what_a_row_says_of_a_fit(needs, source_free, labels, text):
    assert needs.source_free is source_free
    assert needs.labels_read == labels
    assert str(needs) == text
    for domain in ("source", "target"):
        assert needs.reads_images(domain) == (domain in text)  # labels are not read without their images
        assert needs.reads_labels(domain) == (f"{domain} labels" in text)


def test_two_needs_together_read_what_either_reads():
    calibration = Needs(source="labels", split="val", view="plain")
    assert calibration.together_with(Needs(target="images", view="weak")) == Needs(
        source="labels", target="images", split="val", view="plain"
    )
    assert Needs(source="images").together_with(Needs(source="labels")).source == "labels"
    assert Needs(source="labels").together_with(Needs(source="images")).source == "labels"


def test_the_data_side_imports_nothing_of_what_stands_on_it():
    above = {"methods", "pseudo_labels", "callbacks", "cli", "runs", "networks", "losses", "metrics", "town"}
    imported = {
        (path.name, name)
        for path in Path(sfda.data.__file__).parent.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
    }
    assert ("datamodule.py", "sfda.data.needs") in imported
    assert not [(file, name) for file, name in imported if name.startswith("sfda.") and name.split(".")[1] in above]
