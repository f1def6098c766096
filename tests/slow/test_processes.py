"""Commands as `sfda compare` starts them."""

import multiprocessing
import signal

import pytest

from commands import run_sfda
from sfda import __version__
from sfda.processes import started

pytestmark = pytest.mark.slow


def test_output_and_status_are_those_of_the_command(tmp_path):
    done = run_sfda(tmp_path, "--version")
    assert (done.status, done.output) == (0, f"sfda {__version__}\n")
    done = run_sfda(tmp_path, "fit", "streets/nothing")
    assert done.status == 2
    assert done.output.startswith("sfda: streets/nothing: there is no such experiment")


def test_a_command_knows_folder_and_environment_and_its_loaders_start_as_everywhere(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import multiprocessing, os, sys\n"
        "sys.exit(f\"{os.getcwd()} {os.environ['OF_THE_CALL']} {multiprocessing.get_start_method()}\")\n"
    )
    done = run_sfda(tmp_path, "fit", "--config", "experiment/streets/base.yaml", "--model", "mine.M", OF_THE_CALL="x")
    assert f"{tmp_path} x {multiprocessing.get_start_method()}" in done.output


def test_who_leaves_early_leaves_no_command_running(tmp_path):
    with pytest.raises(KeyboardInterrupt), started(["data", "streets", "--out", str(tmp_path / "town")]) as command:
        raise KeyboardInterrupt
    assert command.status == -signal.SIGTERM
