"""Operations of the traced chunks, against the recorded ones."""

import json
from pathlib import Path

import jax
import pytest

from benchmarks.gpu_program.cases import CASES
from benchmarks.operations import count_operations

RECORDED = Path(__file__).parents[2] / "benchmarks/results/operations.json"


@pytest.mark.parametrize(
    "name",
    ["cartpole", pytest.param("rainbow-breakout", marks=pytest.mark.slow), "memorychain",
     pytest.param("pqn-breakout", marks=pytest.mark.slow)],
)  # fmt: skip
def test_a_chunk_has_at_most_a_twentieth_more_operations_than_recorded(name):
    recorded = json.loads(RECORDED.read_text())
    if recorded["versions"]["jax"].split(".")[:2] != jax.__version__.split(".")[:2]:
        pytest.skip(f"recorded with jax {recorded['versions']['jax']}")
    assert 100 < count_operations(CASES[name].config()) <= 1.05 * recorded["operations"][name]
