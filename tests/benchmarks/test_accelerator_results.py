"""The accelerator benchmark: its targets, the times of kernels, and the picture."""

import pytest

from benchmarks.accelerator import kernels, tables, targets
from benchmarks.accelerator.plan import GAMES

SOLVED = {
    f"seed {seed}": {"seconds_to_solve": seconds} for seed, seconds in enumerate((0.5, 2.0, 0.9))
}
MET = {
    "solve": SOLVED,
    "rates": {"breakout pqn E=2048": {"env_steps_per_second": 1e7}},
    "pqn": {game: {"complete": True, "train_seconds": 19.0} for game in GAMES},
    "score": {"fast": {"seconds_to_solve": 29.0}, "pqn": {"seconds_to_solve": None}},
    "population": {"1 learners": {"gradient_steps_per_second": 10.0},
                   "64 learners": {"gradient_steps_per_second": 200.0}},
}  # fmt: skip


def met(sections, valid=True):
    return [verdict.met for verdict in targets.judge(sections, valid=valid)]


def test_targets_are_met_at_their_bounds():
    assert met(MET) == [True] * 5
    measured = [verdict.measured for verdict in targets.judge(MET, valid=True)]
    assert measured[0] == "median 0.900 s, 3 of 3 seeds"
    assert measured[4] == "20.0 x"


@pytest.mark.parametrize(
    ("index", "section", "results"),
    [
        (0, "solve", {"seed 0": {"seconds_to_solve": 1.0}}),
        (0, "solve", {**SOLVED, "seed 9": {"seconds_to_solve": None}}),
        (1, "rates", {"a": {"env_steps_per_second": 9.9e6}}),
        (2, "pqn", {**MET["pqn"], GAMES[0]: {"complete": True, "train_seconds": 20.0}}),
        (2, "pqn", {**MET["pqn"], GAMES[0]: {"complete": False, "train_seconds": 20.5}}),
        (3, "score", {"fast": {"seconds_to_solve": 30.0}}),
        (3, "score", {"fast": {"seconds_to_solve": None, "train_seconds": 28.0,
                               "eval_seconds": 3.0}}),
        (4, "population", {"1 learners": {"gradient_steps_per_second": 10.1},
                           "64 learners": {"gradient_steps_per_second": 200.0}}),
    ],
)  # fmt: skip
def test_targets_are_missed_beyond_their_bounds(index, section, results):
    assert met({**MET, section: results}) == [i != index for i in range(5)]


def test_a_target_without_its_cells_is_not_measured():
    assert met({}) == [None] * 5
    some_games = {game: MET["pqn"][game] for game in GAMES[:2]}
    assert met({"pqn": some_games})[2] is None
    cut = {**MET["pqn"], GAMES[0]: {"complete": False, "train_seconds": 15.0}}
    assert met({"pqn": cut})[2] is None
    short = {"seconds_to_solve": None, "train_seconds": 9.0, "eval_seconds": 1.0}
    assert met({"score": {"fast": short}})[3] is None
    assert met({"population": {"1 learners": {"gradient_steps_per_second": 1.0}}})[4] is None


def test_no_target_counts_on_a_cpu_or_at_tiny_sizes():
    assert met(MET, valid=False) == [None] * 5


TEXT = """HloModule jit_run, entry_computation_layout={()->f32[]}

%body (p: f32[]) -> f32[] {
  %fusion.1 = f32[4]{0} fusion(%p), kind=kLoop, metadata={op_name="jit(run)/while/body/act/dot"}
  dot.2 = f32[4]{0} dot(%a), metadata={op_name="jit(run)/while/body/jvp(learn)/draw/dot" x=1}
  ROOT %copy.3 = f32[] copy(%p)
}
"""


def test_each_instruction_has_its_innermost_region():
    assert kernels.part_of_each(TEXT) == {"fusion.1": "act", "dot.2": "draw", "copy.3": "rest"}
    assert kernels.region_of("jit(f)/transpose(jvp(learn))/mul") == "learn"


def test_times_are_added_up_by_part_and_divided_by_the_iterations():
    run = [("a", "fusion.1", 6.0), ("b", "dot.2", 4.0), ("a", "fusion.1", 2.0),
           ("c", "copy.3", 2.0), ("d", "while.5", 99.0)]  # fmt: skip
    events = [kernels.Event(name, op, "jit_run", us) for name, op, us in run]
    events.append(kernels.Event("x", "fusion.1", "jit_other", 99.0))
    found = kernels.summarise(events, TEXT, 2)
    assert found["launches"] == 2.0
    assert found["kernel_us"] == 7.0
    assert found["kernel_us_by_part"] == {"act": 4.0, "draw": 2.0, "rest": 1.0}
    assert found["longest"] == {"a": 4.0, "b": 2.0, "c": 1.0}


def test_a_trace_without_the_program_is_an_error():
    with pytest.raises(ValueError, match="no event of the program jit_run"):
        kernels.summarise([], TEXT, 1)


def test_rates_are_drawn_as_one_line_a_program_over_e(tmp_path):
    results = {
        f"{name} E={envs}": {"num_envs": envs, "env_steps_per_second": 2.0 * envs,
                             "gradient_steps_per_second": 1.0}
        for envs in (64, 32) for name in ("cartpole dqn", "breakout pqn")
    }  # fmt: skip
    lines = tables.rate_lines(results, "env_steps_per_second")
    assert lines == {key: [(32, 64.0), (64, 128.0)] for key in ("cartpole dqn", "breakout pqn")}
    tables.draw_rates(results, tmp_path / "rates.png")
    assert (tmp_path / "rates.png").stat().st_size > 1_000
