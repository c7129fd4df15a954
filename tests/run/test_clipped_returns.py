"""A C51 run reports once that its returns leave the range of the atoms."""

import pytest

from jaxdqn.run.runner import run
from tests.run.test_run import collector
from tests.toys import cycle, quick_runs, tiny


@pytest.mark.parametrize("recurrent", ["none", pytest.param("gru", marks=pytest.mark.slow)])
def test_returns_outside_the_atoms_are_reported_once(recurrent):
    sequences = {"recurrent_size": 4, "burn_in": 0, "sequence_length": 3}
    fields = {"loss": "categorical", "atoms": 11, "value_min": 0.0, "total_rows": 600}
    fields |= {"gamma": 0.9, "eval_every": 0, "eval_episodes": 4, "learning_rate": 0.01}
    if recurrent != "none":
        fields |= {"recurrent": recurrent, **sequences}

    def trained(value_max):
        seen, logger = collector()
        with quick_runs():
            run(
                tiny(value_max=value_max, **fields),
                environment=cycle([1.0, 2.0], limit=4),
                loggers=[logger],
            )
        metrics = [record for kind, record in seen.records if kind == "metrics"]
        events = [record for kind, record in seen.records if kind == "event"]
        clipped = [event for event in events if event["event"] == "clipped_returns"]
        return [record["clipped_probability"] for record in metrics], clipped

    # A reward of at most 2 and a discount of 0.9 give returns of at most 20.
    inside, events = trained(20.0)
    assert max(inside) < 0.1
    assert events == []
    outside, (event,) = trained(2.0)
    assert len(outside) > 2
    assert min(outside) > 0.25
    assert "value_min=0 to value_max=2" in event["message"]
    assert "\n" not in event["message"]
