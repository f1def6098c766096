"""Every YAML file that a user gives is read in one way, which names file, line and column of a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfda.errors import UserError
from sfda.yaml_files import read_mapping, read_yaml

BROKEN = 'class_path: X\ninit_args: {target: {root: "C:\\data"}}\n'
SENTENCE = (
    "mine.yaml: cannot be read as YAML: line 2, column 32: found unknown escape character 'd'; in double quotes a \\ "
    "begins an escape: write / or \\\\, or put the text into single quotes"
)
EXPERIMENT = ("validate", "streets/source_only")


@pytest.mark.parametrize(
    "words",
    [
        (*EXPERIMENT, "--data", "mine.yaml"),
        (*EXPERIMENT, "--config=mine.yaml"),
        (*EXPERIMENT, "--config", "outer.yaml"),
        (*EXPERIMENT, "--trainer", "mine.yaml"),
        (*EXPERIMENT, "--trainer.logger", "mine.yaml"),
        ("fit", "--config", "experiment/streets/base.yaml", "--model", "mine.yaml"),
        ("fit", "--run", "run"),
        ("calibrate", "--run", "run", "--with", "pseudo_cal"),
        ("predict", "--run", "run", "--images", "run", "--out", "out"),
        ("data", "check", "--config", "mine.yaml"),
        ("data", "check", "--config", "outer.yaml"),
        ("data", "check", "--config", "classes.yaml"),
        ("compare", "mine.yaml", "--out", "out"),
        ("compare", "compare.yaml", "--out", "out"),
        ("sweep", "mine.yaml", "--trials", "1"),
    ],
    ids=" ".join,
)
def test_a_file_that_cannot_be_parsed_is_a_sentence_at_every_door(words, sfda, tmp_path: Path, capsys) -> None:
    for name in ("mine.yaml", "run/config.yaml", "experiment/mine/base.yaml", "experiment/mine/ada_bn.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(BROKEN)
    (tmp_path / "outer.yaml").write_text("data: mine.yaml\n")
    (tmp_path / "classes.yaml").write_text("init_args: {target: {layout: gta5, root: x}, classes: mine.yaml}\n")
    (tmp_path / "compare.yaml").write_text("benchmark: mine\nexperiments: [ada_bn]\nseeds: [1]\n")
    assert sfda(*words) in (1, 2)
    printed = capsys.readouterr()
    assert SENTENCE.partition(".yaml")[2] in " ".join((printed.out + printed.err).split())
    assert "Traceback" not in printed.err


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x81", b"day: 2026-13-01", b'a: "\\xyz"', b"a: !!python/x 1"])
def test_what_yaml_does_not_allow_is_a_user_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes(content)
    with pytest.raises(UserError, match=r"a\.yaml: cannot be read as YAML: "):
        read_yaml(tmp_path / "a.yaml")


def test_a_config_holds_keys_and_values_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("# nothing\n")
    assert read_mapping(path) == {}
    path.write_text("[1, 2]")
    with pytest.raises(UserError, match="it holds no mapping"):
        read_mapping(path)
