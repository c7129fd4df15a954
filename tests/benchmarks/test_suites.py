"""Benchmark of environments on the device."""

import pytest

from benchmarks import suites


def test_an_environment_is_measured_with_and_without_resets(capsys):
    flags = ["--rounds", "1", "--seconds", "0.001", "--num-envs", "2", "--steps", "3"]
    assert suites.main([*flags, "--envs", "CartPole-v1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (row,) = [line for line in lines if "CartPole-v1" in line]
    assert len(row.split("(")) == 4, "two rates and their ratio, each with its interval"


@pytest.mark.parametrize("flag", ["--num-envs", "--steps", "--rounds"])
def test_a_size_below_one_is_named(flag, capsys):
    assert suites.main([flag, "0"]) == 2
    name = flag.strip("-").replace("-", "_")
    assert f"{name}=0: must be at least 1" in capsys.readouterr().err
