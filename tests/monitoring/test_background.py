"""Loggers in a thread: order, failures and the end."""

import threading

import pytest

from jaxdqn.monitoring.background import in_background
from jaxdqn.monitoring.loggers import Logger, LoggerGroup


def test_records_arrive_in_order_in_another_thread_before_close_returns():
    seen, threads = [], set()

    def log(kind, record):
        threads.add(threading.current_thread())
        seen.append((kind, record["index"]))

    logger = in_background(Logger(log=log, close=lambda: seen.append("closed"), name="mine"))
    for index in range(100):
        logger.log("metrics", {"index": index})
    logger.close()
    assert seen == [*(("metrics", index) for index in range(100)), "closed"]
    assert threading.current_thread() not in threads
    assert len(threads) == 1
    logger.close()  # again does nothing


def test_a_run_does_not_wait_for_a_slow_logger():
    may_go = threading.Event()
    logger = in_background(Logger(log=lambda *record: may_go.wait(10), close=lambda: None))
    for _ in range(5):
        logger.log("metrics", {})  # returns although nothing is written
    may_go.set()
    logger.close()


def test_a_failure_in_the_thread_drops_the_logger(capsys):
    failed, closed = threading.Event(), []

    def log(kind, record):
        failed.set()
        raise OSError("no space")

    logger = in_background(Logger(log=log, close=lambda: closed.append(1), name="mine"))
    group = LoggerGroup([logger])
    group.log("metrics", {})
    assert failed.wait(10)
    while not closed:  # the exception is raised by one of the next calls
        group.log("metrics", {})
    assert "warning: mine failed: OSError: no space; it is dropped" in capsys.readouterr().err
    assert closed == [1]


def test_a_failure_of_the_last_record_is_raised_by_close():
    def log(kind, record):
        raise OSError("no space")

    logger = in_background(Logger(log=log, close=lambda: None))
    logger.log("summary", {})
    with pytest.raises(OSError, match="no space"):
        logger.close()
