"""Loggers: records in files, and progress on the terminal."""

import io
import json
import math

import pytest

from jaxdqn.config.config import Config
from jaxdqn.monitoring.loggers import make_jsonl_logger
from jaxdqn.monitoring.terminal import (
    evaluation_line,
    make_progress_logger,
    planned_rows,
    progress_items,
)
from jaxdqn.storage.jsonl import read_lines, to_json, write_json

START = {"config": {"env": "Toy-v0", "seed": 3}, "out": "runs/toy"}
EVALUATION = {
    "purpose": "evaluate", "rows": 2_000, "seconds": 1.5, "return_mean": 12.0,
    "return_std": 5.0, "episodes": 100, "distinct_episodes": 100,
}  # fmt: skip


def metrics(rows, **values):
    record = {
        "rows": rows, "env_steps": rows - 10, "gradient_steps": rows // 4, "seconds": 2.0,
        "env_steps_per_second": 1234.4, "gradient_steps_per_second": 99.6, "episodes": 3,
        "return_mean": 20.126, "loss": 0.5, "epsilon": 0.25,
    }  # fmt: skip
    return {**record, **values}


def test_every_record_is_in_its_file_immediately_and_is_json_even_if_not_finite(tmp_path):
    logger = make_jsonl_logger(tmp_path)
    logger.log("metrics", {"rows": 1, "loss": math.nan, "parts": [math.inf, 2.0]})
    logger.log("evaluation", {"return_mean": 3.0})
    logger.log("summary", {"solved": True})
    # Read before the logger is closed.
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"rows": 1, "loss": None, "parts": [None, 2.0]}]
    assert read_lines(tmp_path / "evaluations.jsonl") == [{"return_mean": 3.0}]
    logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "evaluations.jsonl",
        "events.jsonl",
        "metrics.jsonl",
    ]


def test_an_incomplete_last_line_is_ignored(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"rows": 1}\n{"rows": 2}\n{"ro')
    assert read_lines(file) == [{"rows": 1}, {"rows": 2}]


def test_json_is_replaced_atomically_and_leaves_no_other_file(tmp_path):
    write_json(tmp_path / "summary.json", {"a": 1})
    write_json(tmp_path / "summary.json", {"a": 2})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"a": 2}
    assert len(list(tmp_path.iterdir())) == 1


def test_nan_and_infinity_become_null():
    assert json.loads(to_json({"nested": {"x": math.nan}, "y": (1, -math.inf)})) == {
        "nested": {"x": None},
        "y": [1, None],
    }


def test_without_a_terminal_progress_is_plain_lines():
    stream = io.StringIO()
    logger = make_progress_logger(Config(seed=3), stream)
    logger.log("start", START)
    logger.log("metrics", metrics(10_000))
    logger.log("evaluation", EVALUATION)
    logger.close()
    text = stream.getvalue()
    assert "\x1b" not in text
    start, chunk, evaluation = text.splitlines()
    assert start == "Toy-v0, seed 3, into runs/toy; compiling"
    for part in ("env steps 9,990", "env steps/s 1,234", "gradient steps/s 100", "return 20.13",
                 "loss 0.5", "epsilon 0.250", "time left"):  # fmt: skip
        assert part in chunk
    # The standard error: 5 / sqrt(100).
    assert "12.00 ± 0.50 over 100" in evaluation


def test_short_chunks_do_not_print_a_line_each():
    stream = io.StringIO()
    logger = make_progress_logger(Config(), stream)
    for rows in range(1_000, 100_000, 1_000):
        logger.log("metrics", metrics(rows))
    assert 1 <= len(stream.getvalue().splitlines()) <= 3


def test_a_terminal_shows_the_last_metrics_and_evaluation():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    logger = make_progress_logger(Config(), stream)
    logger.log("start", START)
    for rows in (10_000, 20_000, 30_000):
        logger.log("metrics", metrics(rows))
    logger.log("evaluation", EVALUATION)
    logger.log("summary", {})
    logger.close()
    last = stream.getvalue().rpartition("gradient steps/s")[0]
    assert "29,990" in last
    assert "12.00 ± 0.50" in stream.getvalue()


def test_a_logger_without_records_closes():
    stream = io.StringIO()
    stream.isatty = lambda: True
    make_progress_logger(Config(), stream).close()


def test_time_left_extrapolates_the_rows_per_second():
    config = Config(total_rows=40_000)
    half = planned_rows(config) // 2
    items = dict(progress_items(config, metrics(half, seconds=90.0)))
    assert items["time left"] == "1:30"


def test_planned_rows_are_the_budget_rounded_up_to_iterations():
    config = Config(total_rows=40_001, num_envs=32)
    assert 40_001 <= planned_rows(config) < 40_001 + config.num_chunks * config.rows_per_iteration


def test_a_chunk_without_a_finished_episode_has_no_return():
    assert dict(progress_items(Config(), metrics(1_000, return_mean=None)))["return"] == "-"


@pytest.mark.parametrize(("purpose", "word"), [("evaluate", "evaluation"), ("confirm", "confirm")])
def test_an_evaluation_line_names_its_purpose(purpose, word):
    assert evaluation_line({**EVALUATION, "purpose": purpose}).startswith(word)


def test_an_evaluation_line_counts_distinct_episodes_and_names_epsilon():
    record = {**EVALUATION, "purpose": "evaluate"}
    assert evaluation_line(record).endswith("over 100 greedy episodes")
    few = evaluation_line({**record, "distinct_episodes": 2})
    assert few.endswith("over 100 greedy episodes, 2 of them distinct")
    assert evaluation_line({**record, "epsilon": 0.05}).endswith("over 100 0.05-greedy episodes")
