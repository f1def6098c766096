import os
import subprocess

import pytest

from sfda.callbacks.run_folder import git_commit


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Somebody's git repository of one commit, the one that `git_commit` finds this package in."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    folder = tmp_path / "checkout"
    module = folder / "env/sfda/callbacks/run_folder.py"
    module.parent.mkdir(parents=True)
    module.write_text("")
    (folder / "theirs.py").write_text("")
    monkeypatch.setattr("sfda.callbacks.run_folder.__file__", str(module))
    git(folder, "init", "-q")
    commit(folder, "theirs.py")
    return folder


def git(folder, *words):
    words = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b", *words]
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def commit(folder, path):
    git(folder, "add", path)
    git(folder, "commit", "-q", "-m", "one")


@pytest.mark.parametrize("ignored", [False, True])
def test_a_package_inside_the_checkout_of_another_project_has_no_commit(checkout, ignored):
    if ignored:
        (checkout / ".gitignore").write_text("env/\n")
        commit(checkout, ".gitignore")
    assert git_commit() is None


def test_a_package_outside_of_any_checkout_has_no_commit(checkout, tmp_path, monkeypatch):
    monkeypatch.setattr("sfda.callbacks.run_folder.__file__", str(tmp_path / "alone/sfda/run_folder.py"))
    (tmp_path / "alone/sfda").mkdir(parents=True)
    assert git_commit() is None
    monkeypatch.setenv("PATH", "")  # nor without git
    assert git_commit() is None


def test_a_checkout_has_its_commit_and_says_where_it_differs(checkout):
    commit(checkout, "env")
    git(checkout, "tag", "-a", "v1", "-m", "a tag is no commit")
    head = git(checkout, "rev-parse", "HEAD")
    assert git_commit() == head[:12]
    (checkout / "theirs.py").write_text("changed")
    assert git_commit() == f"{head[:12]}-dirty"
