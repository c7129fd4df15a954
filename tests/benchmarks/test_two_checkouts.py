"""Two checkouts in alternation: the driver imports the given one, also if it is older."""

import json
import shutil

import pytest

from benchmarks import two_checkouts
from benchmarks.two_checkouts import fields_of
from jaxdqn.config.config import Config
from tests.studies import ROOT

COMMON = """
import jax
import jax.numpy as jnp

class Config:
    def __init__(self, **fields):
        assert fields["hidden_sizes"] == (120, 84)
        self.fields = fields

def scan(iterations):
    def body(state, _):
        return state + 1.0, ()
    return lambda state: (jax.lax.scan(body, state, None, length=iterations)[0], ())
"""
NEW = """
class Trainer:
    init = staticmethod(lambda key: jnp.zeros(3))
    chunk = staticmethod(scan)

make_trainer = lambda config: Trainer
"""
OLD = """
class Trainer:
    init = staticmethod(lambda key: jnp.zeros(3))

make_trainer = lambda config: Trainer
make_chunk = lambda trainer, iterations: scan(iterations)
"""
BROKEN = "make_trainer = lambda config: 1 / 0\n"


def checkout(directory, text):
    """Write a checkout that has nothing but a package ``jaxdqn``."""
    package = directory / "jaxdqn"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(COMMON + text)
    return str(directory)


def test_an_older_checkout_is_measured_by_the_driver_of_this_one(tmp_path, capsys):
    a, b = checkout(tmp_path / "a", OLD), checkout(tmp_path / "b", NEW)
    file = tmp_path / "ratios.json"
    flags = ["--work", "cartpole", "--rounds", "3", "--seconds", "0", "--iterations", "5"]
    assert two_checkouts.main([a, b, *flags, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    found = report["work"]["cartpole"]
    for clock in ("seconds", "cpu_seconds"):
        rates = found[f"iterations_per_{clock}"]
        assert 0 < rates["A"]["low"] <= rates["A"]["median"]
        assert 0 < rates["ratio"]["low"] <= rates["ratio"]["median"] <= rates["ratio"]["high"]
    assert found["fields"]["batch_size"] == 128
    assert set(report["checkouts"]) == {"A", "B"}
    assert "B over A" in capsys.readouterr().out


def test_a_checkout_that_cannot_run_the_workload_is_named_with_its_reason(tmp_path, capsys):
    a, b = checkout(tmp_path / "a", NEW), checkout(tmp_path / "b", BROKEN)
    flags = ["--work", "cartpole", "--rounds", "1", "--seconds", "0"]
    assert two_checkouts.main([a, b, *flags]) != 0
    error = capsys.readouterr().err
    assert "checkout B cannot run the workload: ZeroDivisionError: division by zero" in error


def test_ratios_are_of_b_to_a_round_by_round(monkeypatch):
    left = {"A": [4.0, 8.0], "B": [2.0, 2.0]}

    class Fake:
        def __init__(self, command, cpu_threads):
            self.name = command[3]

        def receive(self):
            return {"compile_seconds": 1.0}

        def measure(self):
            seconds = left[self.name].pop(0)
            return {"seconds": seconds, "cpu_seconds": 1.0, "iterations": 8}

        def close(self):
            left.pop(self.name)

    monkeypatch.setattr("benchmarks.processes.Process", Fake)
    flags = two_checkouts.Flags(checkouts=("A", "B"), rounds=2)
    found = two_checkouts.compare(flags, {})
    assert found["iterations_per_seconds"]["ratio"] == (3.0, 2.0, 4.0)
    assert found["iterations_per_seconds"]["A"] == (1.5, 1.0, 2.0)
    assert found["iterations_per_cpu_seconds"]["ratio"] == (1.0, 1.0, 1.0)
    assert left == {}, "the processes are closed"


@pytest.mark.parametrize("work", ["cartpole", "cartpole-large", "breakout", "breakout-large"])
def test_the_fields_of_a_workload_are_those_of_the_matched_configuration(work):
    config = Config(**{
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields_of(work).items()
    })  # fmt: skip
    assert (config.batch_size, config.hidden_sizes) == (128, (120, 84))
    assert config.num_envs == (256 if work.endswith("large") else 10)
    assert config.replay_capacity > 30_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["."], "must be two directories"),
        ([".", "absent"], "checkouts='absent': must be a checkout, with jaxdqn/__init__.py"),
        ([".", ".", "--rounds", "0"], "rounds=0: must be at least 1"),
        ([".", ".", "--seconds", "-1"], "seconds=-1.0: must be at least 0"),
    ],
)
def test_invalid_flags_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert two_checkouts.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow  # compiles the workload twice
def test_this_checkout_and_a_copy_of_its_package_are_compared(tmp_path, capsys):
    shutil.copytree(ROOT / "jaxdqn", tmp_path / "jaxdqn")
    file = tmp_path / "ratios.json"
    flags = ["--work", "cartpole", "--rounds", "2", "--seconds", "0", "--iterations", "2"]
    assert two_checkouts.main([str(ROOT), str(tmp_path), *flags, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    assert report["checkouts"]["B"] == "unknown"
    assert report["work"]["cartpole"]["iterations_per_seconds"]["ratio"]["median"] > 0
