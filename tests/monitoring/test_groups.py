"""Curves over seeds: which runs form a group, and the estimates over it."""

import numpy as np
import pytest

from jaxdqn.config.config import to_dict
from jaxdqn.monitoring.curves import plot_details, plot_groups
from jaxdqn.monitoring.groups import Group, Seed, band_of, groups_of, labels_of
from jaxdqn.monitoring.statistics import iqm
from jaxdqn.storage.engine_record import write_engine
from jaxdqn.storage.jsonl import to_json, write_json
from jaxdqn.storage.parts import write_parts
from tests.toys import tiny


def write_run(path, points, **overrides):
    """Write a run with evaluations of (env_steps, seconds, return, or a list of returns)."""
    path.mkdir()
    write_json(path / "config.json", to_dict(tiny(**overrides)))
    lines = []
    for env_steps, seconds, value in points:
        record = {"purpose": "evaluate", "env_steps": env_steps, "seconds": seconds}
        if isinstance(value, list):
            record |= {"learners": value, "return_mean": 0.0}
        else:
            record["return_mean"] = value
        lines += [to_json(record), to_json({**record, "purpose": "confirm", "return_mean": -1.0})]
    (path / "evaluations.jsonl").write_text("".join(line + "\n" for line in lines))
    return path


def test_runs_that_differ_in_their_seed_form_a_group(tmp_path):
    runs = [
        write_run(tmp_path / "a", [(10, 1.0, 5.0)], seed=0, checkpoint_every=100),
        write_run(tmp_path / "b", [(10, 1.0, 6.0)], seed=1),
        write_run(tmp_path / "c", [(10, 1.0, 7.0)], seed=0, learning_rate=0.5),
    ]
    groups = groups_of(runs)
    assert [[seed.returns for seed in group.seeds] for group in groups] == [
        [[5.0], [6.0]],
        [[7.0]],
    ]
    assert labels_of(groups) == ["learning_rate=0.001, 2 seeds", "learning_rate=0.5, 1 seed"]
    assert labels_of(groups[:1]) == ["2 seeds"]


def test_own_parts_and_the_engine_are_not_pooled_as_seeds(tmp_path):
    def run(name, seed, parts=(), engine=None):
        path = write_run(tmp_path / name, [(10, 1.0, 5.0)], seed=seed)
        write_parts(path, dict(parts))
        write_engine(path, engine)
        return path

    network = {"network": {"reference": "own.py:wide", "directory": "/home"}}
    loss = {"loss": {"reference": "own.py:loss", "directory": "/home"}, "spec": {"name": "x"}}
    ray = {"engine": "ray", "actors": 2}
    groups = groups_of(
        [
            run("a", 0),
            run("b", 1, network),
            run("c", 2, network),
            run("d", 3, loss),
            run("e", 4, {"explore": None}),
            run("f", 5, engine=ray),
            run("g", 6, engine={**ray, "actors": 3}),
            run("h", 7, {"spec": {"name": "x"}}),
        ]
    )
    assert [len(group.seeds) for group in groups] == [2, 2, 1, 1, 1, 1]
    labels = labels_of([groups[0], groups[1]])
    assert labels == ["network=auto, 2 seeds", "network=own.py:wide, 2 seeds"]
    assert labels_of([groups[0], groups[3]]) == [
        "explore=default, 2 seeds",
        "explore=object, 1 seed",
    ]
    assert labels_of([groups[0], *groups[4:]]) == [
        "engine='jit', 2 seeds",
        "engine='ray' with actors=2, 1 seed",
        "engine='ray' with actors=3, 1 seed",
    ]
    assert len(set(labels_of(groups))) == len(groups)


def test_the_learners_of_a_sweep_join_the_runs_of_their_configuration(tmp_path):
    points = [(40, 1.0, [1.0, 2.0, 3.0, None]), (80, 2.0, [1.5, 2.5, 3.5, 4.5])]
    sweep = {"num_seeds": 2, "sweep": ("learning_rate=0.1,0.2",)}
    runs = [
        write_run(tmp_path / "sweep", points, **sweep),
        write_run(tmp_path / "one", [(10, 1.0, 9.0)], seed=7, learning_rate=0.2),
    ]
    first, second = groups_of(runs)
    # The records count the steps of all four learners; a return of null is left out.
    assert first.seeds[0] == Seed([10.0, 20.0], [1.0, 2.0], [1.0, 1.5])
    assert [seed.returns for seed in second.seeds] == [[3.0, 3.5], [4.5], [9.0]]
    assert labels_of([first, second]) == [
        "learning_rate=0.1, 2 seeds",
        "learning_rate=0.2, 3 seeds",
    ]


def test_an_estimate_interpolates_each_seed_and_holds_its_last_return():
    seeds = [
        Seed([0.0, 10.0], [0.0, 1.0], [0.0, 10.0]),
        Seed([2.0, 4.0], [0.0, 1.0], [4.0, 8.0]),
        Seed([0.0, 8.0], [0.0, 2.0], [1.0, 9.0]),
    ]
    band = band_of(Group({}, seeds, None), "env_steps", points=5)
    assert band.x == [2.0, 4.0, 6.0, 8.0, 10.0]
    each = [[2, 4, 6, 8, 10], [4, 8, 8, 8, 8], [3, 5, 7, 9, 9]]
    middle = [iqm(column) for column in zip(*each, strict=True)]
    np.testing.assert_allclose([estimate.iqm for estimate in band.estimates], middle)
    for estimate, column in zip(band.estimates, zip(*each, strict=True), strict=True):
        assert min(column) <= estimate.low <= estimate.iqm <= estimate.high <= max(column)
    assert band_of(Group({}, seeds[:1], None), "seconds") == (
        [0.0, 1.0],
        [(0.0, 0.0, 0.0), (10.0, 10.0, 10.0)],
    )


def test_a_run_without_an_evaluation_is_named(tmp_path):
    run = write_run(tmp_path / "none", [])
    with pytest.raises(ValueError, match=r"none'.*: must have an evaluation to draw"):
        groups_of([run])


def test_each_panel_shows_every_group_and_the_band_of_its_seeds(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "jaxdqn.monitoring.curves._save", lambda figure, *rest: drawn.append(figure)
    )
    points = [(10, 1.0, 5.0), (20, 2.0, 8.0)]
    runs = [write_run(tmp_path / str(seed), points, seed=seed) for seed in range(3)]
    runs.append(write_run(tmp_path / "other", points, learning_rate=0.5))
    plot_groups(groups_of(runs), "x.png")
    plot_groups(groups_of(runs), "x.png", axis="seconds")
    both, one = drawn
    assert [len(panel.lines) for panel in both.axes] == [2, 2]
    assert [len(panel.collections) for panel in both.axes] == [1, 1]
    (panel,) = one.axes
    assert panel.get_xlabel() == "wall-clock seconds"
    assert len({line.get_color() for line in panel.lines}) == 2


def test_details_have_a_panel_for_each_figure_that_a_run_logged(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "jaxdqn.monitoring.curves._save", lambda figure, *rest: drawn.append(figure)
    )
    runs = [write_run(tmp_path / str(seed), [(10, 1.0, 5.0)], seed=seed) for seed in range(2)]
    (runs[0] / "metrics.jsonl").write_text(
        '{"env_steps": 4, "loss": null}\n{"env_steps": 8, "loss": 2}\n'
    )
    (runs[1] / "metrics.jsonl").write_text(
        '{"env_steps": 4, "loss": 1, "q_mean": 3, "parameter_age": 2, "gradient_staleness": 1}\n'
    )
    plot_details(runs, "x.svg")
    titles = [panel.get_title() for panel in drawn[0].axes if panel.axison]
    assert titles[:2] == ["loss", "mean Q of the actions"]
    assert titles[2:] == ["age of the actors' parameters", "staleness of gradients"]
    assert [line.get_xdata().tolist() for line in drawn[0].axes[0].lines] == [[8.0], [4.0]]
