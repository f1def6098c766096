"""`make bench` finds its files, and every one of them can be imported; its table says what is met."""

import importlib.util
from pathlib import Path

import pytest
from rich.console import Console

from side_by_side import Row, Where, cost, faster, print_table

FILES = sorted(Path(__file__).parent.glob("bench_*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path):
    specification = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert callable(module.rows)
    assert isinstance(module.NEEDS_NETWORK and module.ON_GPU, bool)


def printed(rows):
    console = Console(width=150, record=True, quiet=False)
    with console.capture() as capture:
        status = print_table(rows, "", console)
    return status, capture.get().splitlines()


@pytest.mark.parametrize(
    ("kind", "ratio", "is_met"),
    [("faster", 2.0, True), ("faster", 1.99, False), ("cost", 2.0, True), ("cost", 2.01, False)],
)
def test_a_row_is_met_where_its_ratio_is_what_is_aimed_at(kind, ratio, is_met):
    assert Row("a", "b", 1, 1, ratio, 2, kind).is_met == is_met


def test_the_last_line_counts_what_is_met_and_the_status_is_0_only_where_all_are():
    good, bad = Row("a", "b", 1, 3, 3, 2), Row("c", "d", 1, 1, 1, 2)
    status, lines = printed([good, bad])
    assert (status, lines[-1]) == (1, "1 of 2 rows are met")
    assert [line.split()[-1] for line in lines if line.startswith(("a ", "c "))] == ["yes", "NO"]
    status, lines = printed([good])
    assert (status, lines[-1]) == (0, "1 of 1 rows are met")


def test_ratios_are_of_the_reference_where_faster_and_of_ours_where_a_cost(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("side_by_side.time.perf_counter", lambda: clock[0])

    def work(seconds):
        def call():
            clock[0] += seconds

        return call

    row = faster("", work(2), "", work(8), 1, Where())
    assert (row.ours, row.theirs, row.ratio) == pytest.approx((2000, 8000, 4))
    row = cost("", work(6), "", work(4), 1, Where())
    assert (row.ours, row.theirs, row.ratio) == pytest.approx((6000, 4000, 1.5))
