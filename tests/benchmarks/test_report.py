"""Tables, files and stamps of the benchmarks."""

import json

import jax
import pytest

from benchmarks import report
from benchmarks.timing import Interval


def test_tables_are_aligned_with_three_significant_digits():
    rows = [["a", 1234.5678, Interval(1.0, 0.012345, 20.0)], ["long name", 0.5, "x"]]
    assert report.format_table(["name", "n", "ratio"], rows).splitlines() == [
        "name           n               ratio",
        "a          1,235  1.00 (0.0123-20.0)",
        "long name  0.500                   x",
    ]
    lines = report.format_markdown(["name", "n"], [["a", 1234.5678]]).splitlines()
    assert lines == ["| name | n |", "| --- | --- |", "| a | 1,235 |"]


def test_json_keeps_the_names_of_named_tuples(tmp_path):
    path = tmp_path / "new" / "file.json"
    report.write_json(path, {"ratio": Interval(1.0, 0.5, 2.0), "sizes": (1, 2)})
    assert json.loads(path.read_text()) == {
        "ratio": {"median": 1.0, "low": 0.5, "high": 2.0},
        "sizes": [1, 2],
    }


def test_a_file_that_cannot_be_written_is_rejected_before_measuring(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below.json"):
        with pytest.raises(ValueError, match=path.name):
            report.check_writable(str(path))
    report.check_writable(str(tmp_path / "new" / "file.json"))
    report.check_writable(None)
    assert not (tmp_path / "new").exists()


def test_a_stamp_has_machine_and_versions():
    stamped = report.stamp()
    assert stamped["versions"]["jax"] == jax.__version__
    assert stamped["platform"] == jax.devices()[0].platform
    assert jax.__version__ in report.describe(stamped)
    json.dumps(stamped)
