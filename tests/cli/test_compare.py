"""``jaxdqn compare`` where the benchmarks are, and where they are not."""

import sys

import pytest

from jaxdqn.cli import compare


def test_without_the_benchmarks_it_is_one_line(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "benchmarks", None)
    assert compare.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: compare: must be run in a checkout of the repository")


def test_a_package_that_the_benchmarks_miss_is_not_hidden(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(compare, "import_module", fail)
    with pytest.raises(ModuleNotFoundError, match="torch"):
        compare.main([])


def test_in_a_checkout_it_runs_the_benchmark(capsys):
    with pytest.raises(SystemExit) as ended:
        compare.main(["--help"])
    assert ended.value.code == 0
    assert "usage: jaxdqn compare" in capsys.readouterr().out
