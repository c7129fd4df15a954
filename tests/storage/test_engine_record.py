"""The record of a run's engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jaxdqn.cli.engine import with_recorded_engine
from jaxdqn.cli.run_flags import Flags
from jaxdqn.storage.engine_record import ENGINE, engine_text, read_engine, write_engine

RECORD = {
    "engine": "ray",
    "actors": 2,
    "replay_shards": 1,
    "learners": 2,
    "server_mode": "sync",
    "compression": "int8",
}


def test_a_record_is_read_back_and_removed(tmp_path: Path) -> None:
    assert read_engine(tmp_path) is None
    write_engine(tmp_path, RECORD)
    assert read_engine(tmp_path) == RECORD
    assert engine_text(RECORD).startswith("engine='ray' with actors=2, replay_shards=1, ")
    write_engine(tmp_path, None)
    assert read_engine(tmp_path) is None
    assert engine_text(None) == "engine='jit'"


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"actors": 2})])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / ENGINE).write_text(text)
    with pytest.raises(ValueError, match=r"engine.json: must be the record of an engine"):
        read_engine(tmp_path)


def test_resuming_takes_the_recorded_engine_and_the_arguments_that_are_not_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_engine(tmp_path, RECORD)
    resume = {"out": str(tmp_path), "resume": True}
    flags = with_recorded_engine(Flags(**resume))
    assert {name: getattr(flags, name) for name in RECORD} == RECORD
    assert "resumes with engine='ray' with actors=2" in capsys.readouterr().out
    flags = with_recorded_engine(Flags(engine="ray", actors=4, **resume))
    assert (flags.actors, flags.learners) == (4, 2)
    flags = with_recorded_engine(Flags(engine="jit", **resume))
    assert (flags.engine, flags.actors, flags.compression) == ("jit", None, "none")
    assert with_recorded_engine(Flags(out=str(tmp_path))).engine == "jit"
