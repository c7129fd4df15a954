"""Masks make learning faster: the program of docs/action-masks.md with and without its mask."""

import numpy as np
import pytest

import jaxdqn
from jaxdqn.config.config import replace
from jaxdqn.run.runner import run
from tests.docs.pages import ROOT, blocks


@pytest.mark.slow
def test_a_mask_of_most_actions_learns_the_shortest_paths_of_a_graph_sooner():
    (program,) = blocks(ROOT / "docs" / "action-masks.md", "python")
    space: dict = {}
    exec(program.partition("result = run")[0], space)  # up to the run, which is repeated here
    config = replace(space["config"], num_seeds=5)
    returns = {}
    for name, legal in (("masked", space["legal"]), ("unmasked", None)):
        environment = jaxdqn.make_environment(
            space["reset"], space["step"], name="walk", num_actions=50, max_episode_steps=50,
            legal=legal,
        )  # fmt: skip
        summary = run(config, environment=environment).summary
        returns[name] = np.array([one["eval_return_mean"] for one in summary["learners"]])
    # Measured: masked -3.2 to -3.5, of a shortest path -3.5; unmasked -12 to -35.
    assert returns["masked"].min() > -4.5
    assert returns["unmasked"].max() < returns["masked"].min() - 3
