"""The programs of docs/change-any-part.md run as written, and their parts are used."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxdqn.run import program_cache
from tests.docs.pages import ROOT
from tests.toys import quick_runs

PAGE = (ROOT / "docs" / "change-any-part.md").read_text(encoding="utf-8")
PROGRAMS = {
    title: program
    for title, program in re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$", PAGE,
                                     re.MULTILINE | re.DOTALL)
}  # fmt: skip


def summary(names):
    return names["result"].summary


def optimiser_state(names):
    return str(jax.tree.structure(names["result"].state.agent.opt_state))


CHECKS = {
    "Environment": lambda names: summary(names)["env"] == "corridor",
    "Network": lambda names: (
        {leaf.shape for leaf in jax.tree.leaves(names["result"].best_params)}
        == {(4, 32), (32,), (32, 2), (2,)}
    ),
    "Recurrent network": lambda names: names["result"].state.actor.carry.shape == (32, 32),
    "Optimiser": lambda names: "Lion" in optimiser_state(names),
    "Loss of one example": lambda names: (
        names["config"].loss == "log_cosh" and summary(names)["gradient_steps"] > 100
    ),
    "Loss of a batch": lambda names: (
        "auxiliary" in Path("runs/augmented/metrics.jsonl").read_text()
    ),
    "Metric": lambda names: 0 < names["metrics"].extra["action_gap"] < np.inf,
    "Hyper-parameter": lambda names: (
        names["result"].state.hyper.extra["decay"].tolist() == pytest.approx([0, 0, 0.1, 0.1])
    ),
    "Exploration": lambda names: names["drawn"] != [],
    "Replay": lambda names: (
        [len(half.storage.reward) for half in names["result"].state.replay] == [800, 16]
    ),
    "Algorithm": lambda names: names["result"].state.replay == (),
    "Agent": lambda names: names["result"].best_params.shape == (4, 2),
    "Logger": lambda names: len(names["returns"]) == 4,
}


def test_every_program_has_a_check():
    assert set(PROGRAMS) == set(CHECKS)


def test_no_program_has_more_than_thirty_lines():
    lines = {title: program.count("\n") for title, program in PROGRAMS.items()}
    assert {title: count for title, count in lines.items() if count > 30} == {}


FAST = ("Replay",)


@pytest.mark.parametrize(
    "title",
    [title if title in FAST else pytest.param(title, marks=pytest.mark.slow) for title in PROGRAMS],
)
def test_a_program_runs_and_its_part_is_used(title, monkeypatch, tmp_path, registry):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "program", "drawn": []}
    categorical = jax.random.categorical

    def watched(*arguments, **options):
        names["drawn"].append(arguments)
        return categorical(*arguments, **options)

    monkeypatch.setattr(jax.random, "categorical", watched)
    with quick_runs():
        exec(PROGRAMS[title], names)
    assert CHECKS[title](names)


@pytest.fixture
def registry():
    """Restore the registered losses, and drop the programs of the run."""
    from jaxdqn.config.loss_registry import LOSSES

    before = dict(LOSSES)
    yield
    LOSSES.clear()
    LOSSES.update(before)
    program_cache.clear()
