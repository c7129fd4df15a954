"""Operations of the traced chunks, against the recorded ones, and the table of compile times."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from benchmarks import operations
from benchmarks.gpu_program.cases import CASES
from benchmarks.operations import count_operations, is_counted

RESULTS = Path(__file__).parents[2] / "benchmarks/results/operations.json"
RECORDED = json.loads(RESULTS.read_text())
EXPENSIVE = 2_560
"""Operations above which tracing takes seconds."""


def test_every_program_of_one_learner_on_one_device_is_recorded():
    assert set(RECORDED["operations"]) == {name for name, case in CASES.items() if is_counted(case)}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] if count > EXPENSIVE else [])
     for name, count in RECORDED["operations"].items()],
)  # fmt: skip
def test_a_chunk_has_at_most_a_twentieth_more_operations_than_recorded(name):
    if RECORDED["versions"]["jax"].split(".")[:2] != jax.__version__.split(".")[:2]:
        pytest.skip(f"recorded with jax {RECORDED['versions']['jax']}")
    assert 100 < count_operations(CASES[name].config()) <= 1.05 * RECORDED["operations"][name]


@pytest.fixture
def programs(monkeypatch):
    """Replace lowered programs by text of two operations; return what was compiled."""
    compiled = []
    text = "  %0 = stablehlo.add\n  %1 = stablehlo.multiply\n"

    def lower(config):
        return SimpleNamespace(as_text=lambda: text, compile=lambda: compiled.append(config.env))

    monkeypatch.setattr(operations, "lower", lower)
    monkeypatch.setattr("benchmarks.timing.compile_cold", lambda: None)
    return compiled


def test_programs_are_compiled_only_if_asked_and_others_in_the_file_are_kept(
    programs, tmp_path, capsys
):
    file = tmp_path / "operations.json"
    assert operations.main(["--only", "catch", "--json", str(file)]) == 0
    assert programs == []
    assert "compile" not in json.loads(file.read_text())
    assert operations.main(["--only", "cartpole", "--compile", "--json", str(file)]) == 0
    record = json.loads(file.read_text())
    assert record["operations"] == {"cartpole": 2, "catch": 2}
    assert list(record["compile"]["seconds"]) == ["cartpole"]
    assert programs == ["CartPole-v1"]
    last = capsys.readouterr().out.splitlines()[-1].split()
    assert last == ["catch", "2", "-"]


def test_a_file_of_other_versions_is_not_extended(programs, tmp_path, capsys):
    file = tmp_path / "operations.json"
    file.write_text(json.dumps({"versions": {"jax": "0.1"}, "operations": {}}))
    assert operations.main(["--only", "catch", "--json", str(file)]) == 2
    assert "must be of the same versions with --only" in capsys.readouterr().err


def test_the_compile_times_of_a_file_replace_the_table_of_a_page(programs, tmp_path, capsys):
    file, page = tmp_path / "operations.json", tmp_path / "page.md"
    page.write_text(f"# T\n\n{operations.START}\nold\n{operations.END}\n\nAfter.\n")
    assert operations.main(["--only", "catch", "--json", str(file)]) == 0
    arguments = ["--read", str(file), "--page", str(page)]
    assert operations.main(arguments) == 2
    assert "must come with compile times" in capsys.readouterr().err
    assert operations.main(["--only", "catch", "--compile", "--json", str(file)]) == 0
    assert operations.main(arguments) == 0
    text = page.read_text()
    assert "| program | operations | compile CPU s |\n| --- |" in text
    assert "| `catch` | 2 | 0.0 |" in text
    assert text.startswith(f"# T\n\n{operations.START}\nMeasured on ")
    assert text.endswith(f"{operations.END}\n\nAfter.\n")
    assert "old" not in text


def test_a_page_without_a_place_is_rejected_before_anything_is_counted(programs, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# T\n")
    assert operations.main(["--only", "catch", "--page", str(page)]) == 2
    assert "must have the lines '<!-- compile times -->'" in capsys.readouterr().err


def test_the_table_of_compile_times_in_the_documentation_is_that_of_the_record(tmp_path):
    page = tmp_path / "page.md"
    written = RESULTS.parents[2] / "docs/gpu-program.md"
    page.write_text(written.read_text())
    operations.write_page(page, RECORDED)
    assert page.read_text() == written.read_text()
