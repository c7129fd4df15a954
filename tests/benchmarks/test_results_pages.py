"""Tables of results pages, made from the records of studies."""

import json

import pytest

from benchmarks import results_pages
from tests.studies import ROOT


def record(preset, seed, final, **fields):
    settings = fields.get("settings", {})
    return {
        "config": {"env": "Breakout-MinAtar", **settings}, "settings": {}, "total_rows": 1_000,
        "curve": {"rows": [1_000], "return_mean": [final]},
        "env": "Breakout-MinAtar", "preset": preset, "seed": seed, "final_return": final,
        "best_return": final, "training_return": 2.0, "distinct_episodes": 9, "env_steps": 1_000,
        "train_seconds": 10.0 + seed, "population": 1, "device_kind": "cpu",
        "versions": {"jax": "0.10.2"}, **fields,
    }  # fmt: skip


@pytest.fixture
def study(tmp_path, monkeypatch):
    """Write a study of one game into the working directory, and a page that names it."""
    monkeypatch.chdir(tmp_path)
    directory = tmp_path / "benchmarks" / "results" / "mine"
    directory.mkdir(parents=True)
    records = [record("dqn", seed, final) for seed, final in ((1, 3.0), (0, 1.0))]
    records.append(record("pqn", 0, None, distinct_episodes=None))
    lines = "\n".join(map(json.dumps, records))
    (directory / "results.jsonl").write_text(lines + "\n")
    page = tmp_path / "docs" / "results" / "page.md"
    page.parent.mkdir(parents=True)
    page.write_text("# T\n\n<!-- study: mine -->\nold\n<!-- end of study -->\n\nAfter.\n")
    return page


def test_a_page_gets_the_table_of_its_study_with_every_seed_in_order(study, capsys):
    assert results_pages.main([]) == 0
    text = study.read_text()
    assert "| Breakout | `dqn` | 2.0 [1.0, 3.0] | 1.0 3.0 | 1.0 3.0 | 2.0 | 9 9 |" in text
    assert "| 1,000 | 10 11 | 1 |" in text
    assert "| Breakout | `pqn` | a seed is not finite | - | - | 2.0 | - |" in text
    assert "cpu; JAX 0.10.2. Every record: `benchmarks/results/mine/`." in text
    assert text.startswith("# T\n\n<!-- study: mine -->\n| game |")
    assert text.endswith("<!-- end of study -->\n\nAfter.\n")
    assert "old" not in text
    assert "page.md: mine" in capsys.readouterr().out


def write(study, records):
    file = study.parents[2] / "benchmarks" / "results" / "mine" / "results.jsonl"
    file.write_text("\n".join(map(json.dumps, records)) + "\n")


def test_seeds_of_different_configurations_are_in_different_rows(study):
    write(study, [
        *(record("dqn", seed, 1.0, settings={"gamma": 0.9}) for seed in range(2)),
        *(record("dqn", seed, 3.0, settings={"gamma": 0.5}) for seed in range(2)),
    ])  # fmt: skip
    assert results_pages.main([]) == 0
    text = study.read_text()
    assert "| Breakout | `dqn (gamma=0.9)` | 1.0 [1.0, 1.0] | 1.0 1.0 |" in text
    assert "| Breakout | `dqn (gamma=0.5)` | 3.0 [3.0, 3.0] | 3.0 3.0 |" in text


def test_settings_of_all_seeds_are_printed_once(study):
    write(study, [record("dqn", 0, 1.0, settings={"gamma": 0.9})])
    assert results_pages.main([]) == 0
    text = study.read_text()
    assert "| Breakout | `dqn` | 1.0 [1.0, 1.0] |" in text
    assert "Common settings: `gamma=0.9`." in text


def test_a_page_has_the_wall_clock_to_the_published_score(study):
    curve = {"rows": [1, 2], "return_mean": [4.0, 12.0], "seconds": [30.0, 70.0]}
    write(study, [record("dqn", seed, 12.0, curve=curve, population=2) for seed in range(2)])
    assert results_pages.main([]) == 0
    text = study.read_text()
    assert "| game | score | `dqn` |" in text
    assert "| Breakout-MinAtar | 10 | 70 s (2 of 2) |" in text
    assert "Seeds trained together share their seconds" in text


def test_check_accepts_a_written_page_and_names_another(study, capsys):
    assert results_pages.main(["--check"]) == 2
    assert "page.md': must be written again by python -m benchmarks" in capsys.readouterr().err
    results_pages.main([])
    assert results_pages.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# T\n", "must have a line '<!-- study: NAME -->'"),
        ("<!-- study: none -->\n<!-- end of study -->\n", "study='none': must have results in"),
    ],
)
def test_a_page_without_results_is_one_line(study, text, message, capsys):
    study.write_text(text)
    assert results_pages.main(["--pages", str(study)]) == 2
    assert message in capsys.readouterr().err


def test_the_pages_of_this_repository_are_as_their_results_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert results_pages.main(["--check"]) == 0
