"""Small runs for the tests: interrupted, killed, and compared."""

import signal

from jaxdqn.config.config import replace
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from tests.parallel.test_mapping_laws import assert_identical
from tests.toys import noisy, tiny

CLOCKS = {
    "seconds", "env_steps_per_second", "gradient_steps_per_second", "compile_seconds",
    "train_seconds", "eval_seconds", "seconds_to_solve", "blocked_seconds",
}  # fmt: skip


CONFIG = tiny(eval_episodes=4, eval_every=200, checkpoint_every=100, total_rows=600)


def shrunk(config, **overrides):
    """Return the configuration at a size that runs in moments: six chunks of 40 rows."""
    values = {
        "num_envs": 4,
        "batch_size": 8,
        "warmup_rows": 64,
        "total_rows": 64 + 240,
        "replay_capacity": 128,  # the ring wraps around
        "log_every": 40,
        "eval_every": 80,
        "eval_episodes": 3,
        "checkpoint_every": 80,
        "hidden_sizes": tuple(8 for _ in config.hidden_sizes),
    }
    if config.recurrent != "none":  # sequences need more rows
        values |= {"warmup_rows": 128, "total_rows": 128 + 240, "replay_capacity": 256}
    if config.algorithm == "pqn":
        for name in ("batch_size", "warmup_rows", "replay_capacity"):
            del values[name]
        values |= {"total_rows": 240, "rollout_length": 5, "minibatches": 2}
    return replace(config, **{**values, **overrides})


class Killed(BaseException):
    """Raised by a logger to end a run at once, as a kill would."""


def killing(chunk):
    """Return a logger that kills the run after a chunk."""

    def log(kind, record):
        if kind == "metrics" and record["chunk"] == chunk:
            raise Killed

    return Logger(log=log, close=lambda: None)


def interrupted(out, config=CONFIG, chunk=2, number=signal.SIGTERM, environment=None):
    """Run, and send a signal to this process after a chunk."""

    def log(kind, record):
        if kind == "metrics" and record["chunk"] == chunk:
            signal.raise_signal(number)

    logger = Logger(log=log, close=lambda: None)
    return run(config, out=out, environment=environment or noisy(), loggers=[logger])


def without_clocks(record):
    """Return a record without the values that measure time."""
    return {name: value for name, value in record.items() if name not in CLOCKS}


def records(out, name):
    """Return the records of a file in a run directory, without times."""
    return [without_clocks(record) for record in read_lines(out / name)]


def assert_same_run(one, other, one_result, other_result):
    """Assert that two runs ended bitwise identical, with the same records and summaries."""
    assert_identical(one_result.state, other_result.state)
    assert_identical(one_result.best_params, other_result.best_params)
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        assert records(one, name) == records(other, name)
        assert records(one, name)
    assert without_clocks(one_result.summary) == without_clocks(other_result.summary)
