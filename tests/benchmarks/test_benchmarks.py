"""The benchmarks measure what they say, shown on clocks and works of known size."""

import json
import math
import sys

import jax
import jax.numpy as jnp
import pytest

from benchmarks import reliability, report, throughput, timing, workloads
from benchmarks.techniques import __main__ as compare
from benchmarks.techniques import registry, table  # noqa: F401 (table registers)
from benchmarks.timing import Case, Interval
from benchmarks.versus import __main__


class Clock:
    """A clock that only the work moves on."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def takes(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return run


def alternate(clock, cases, **options):
    return timing.alternate(cases, clock=clock, wait=lambda result: result, **options)


def test_time_per_unit_of_work_is_what_the_clock_says():
    clock = Clock()
    cases = {"a": Case(clock.takes("a", 6.0), work=3), "b": Case(clock.takes("b", 1.0), work=2)}
    times = alternate(clock, cases, rounds=3)
    assert times == {"a": [2.0] * 3, "b": [0.5] * 3}
    assert timing.ratio(times["a"], times["b"]) == Interval(4.0, 4.0, 4.0)


def test_rounds_alternate_their_order_after_two_unmeasured_calls():
    clock = Clock()
    cases = {name: Case(clock.takes(name, 1.0)) for name in "ab"}
    alternate(clock, cases, rounds=3)
    assert "".join(clock.order) == "aabb" + "ab" + "ba" + "ab"


def test_a_measurement_repeats_the_call_until_it_lasts():
    clock = Clock()
    times = alternate(clock, {"a": Case(clock.takes("a", 0.3))}, rounds=2, seconds=1.0)
    assert times["a"] == pytest.approx([0.3, 0.3])
    assert len(clock.order) == 2 + 2 * 4


def test_a_drifting_machine_leaves_the_ratio():
    clock = Clock()

    def slower(factor):
        return lambda: factor * (1.0 + 0.01 * len(clock.order))

    cases = {"a": Case(clock.takes("a", slower(2.0))), "b": Case(clock.takes("b", slower(1.0)))}
    times = alternate(clock, cases, rounds=20)
    assert timing.spread(times["a"]).high > 1.2 * timing.spread(times["a"]).low
    found = timing.ratio(times["a"], times["b"])
    assert found.low <= 2.0 <= found.high
    assert found.high - found.low < 0.05


def test_the_clock_is_read_after_the_result_is_waited_for():
    clock = Clock()

    def wait(seconds):
        clock.now += seconds

    times = timing.alternate({"a": Case(lambda: 5.0)}, rounds=1, clock=clock, wait=wait)
    assert times["a"] == [5.0]


def test_no_round_is_refused():
    with pytest.raises(ValueError, match="rounds=0: must be at least 1"):
        timing.alternate({}, rounds=0)


@pytest.mark.parametrize(
    ("count", "rank"),
    # Published ranks of the 95 % interval of a median; below six, least and greatest.
    [(1, 1), (5, 1), (6, 1), (8, 1), (9, 2), (12, 3), (15, 4), (20, 6), (30, 10)],
)
def test_interval_of_a_median_takes_the_published_ranks(count, rank):
    values = [float(value) for value in range(count, 0, -1)]
    found = timing.median_interval(values)
    assert found == Interval((count + 1) / 2, rank, count + 1 - rank)


def test_spread_is_median_least_and_greatest():
    assert timing.spread([3.0, 1.0, 10.0, 2.0]) == Interval(2.5, 1.0, 10.0)


def test_tables_align_and_print_three_digits():
    rows = [["a", 1234.5678, Interval(1.0, 0.012345, 20.0)], ["long name", 0.5, "x"]]
    assert report.format_table(["name", "n", "ratio"], rows).splitlines() == [
        "name           n               ratio",
        "a          1,235  1.00 (0.0123-20.0)",
        "long name  0.500                   x",
    ]
    lines = report.format_markdown(["name", "n"], [["a", 1234.5678]]).splitlines()
    assert lines == ["| name | n |", "| --- | --- |", "| a | 1,235 |"]


def test_json_keeps_the_names_of_named_tuples(tmp_path):
    path = tmp_path / "new" / "file.json"
    report.write_json(path, {"ratio": Interval(1.0, 0.5, 2.0), "sizes": (1, 2)})
    assert json.loads(path.read_text()) == {
        "ratio": {"median": 1.0, "low": 0.5, "high": 2.0},
        "sizes": [1, 2],
    }


def test_a_file_that_cannot_be_written_is_refused_before_measuring(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "below.json"):
        with pytest.raises(ValueError, match=path.name):
            report.check_writable(str(path))
    report.check_writable(str(tmp_path / "new" / "file.json"))
    report.check_writable(None)
    assert not (tmp_path / "new").exists()


def test_a_stamp_says_machine_and_versions():
    stamped = report.stamp()
    assert stamped["versions"]["jax"] == jax.__version__
    assert stamped["platform"] == jax.devices()[0].platform
    assert jax.__version__ in report.describe(stamped)
    json.dumps(stamped)


def test_carried_goes_on_from_the_last_state():
    run = workloads.carried(lambda state: (state + 1, state), 5)
    assert [run(), run(), run()] == [(6, 5), (7, 6), (8, 7)]


REPETITIONS = 10


@pytest.fixture(scope="module")
def tiny_run():
    """Measure one tiny setting, keeping hold of the parts that it compiled."""
    setting = throughput.Setting("CartPole-v1", 4, 1, 2, 8)
    kept, prepare = {}, workloads.prepare_parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            workloads, "prepare_parts", lambda *args: kept.update(prepare(*args)) or dict(kept)
        )
        measured = throughput.measure_setting(setting, throughput.Effort(2, 0.0, REPETITIONS))
    return setting, measured, kept


@pytest.fixture(scope="module")
def tiny(tiny_run):
    return tiny_run[:2]


@pytest.fixture(scope="module")
def tiny_parts(tiny_run):
    return tiny_run[2]


@pytest.mark.slow
def test_throughput_is_positive_and_agrees_with_the_time_of_an_iteration(tiny, tmp_path):
    setting, measured = tiny
    seconds = measured["us_per_iteration"].median * 1e-6
    assert measured["gradient_steps_per_second"] * seconds == pytest.approx(2)
    # Reset rows are no environment steps, so there are fewer than E an iteration.
    assert 2 < measured["env_steps_per_second"] * seconds <= setting.num_envs
    assert measured["compile_seconds"] > 0
    assert set(measured["us_of_parts_alone"]) == set(throughput.PARTS)
    for part in measured["us_of_parts_alone"].values():
        assert 0 < part.low <= part.median <= part.high < math.inf
    report.write_json(tmp_path / "throughput.json", measured)


def test_throughput_table_has_a_column_for_each_figure(tiny):
    _, measured = tiny
    header, line = throughput.settings_table([measured]).splitlines()
    assert line.split()[:5] == ["CartPole-v1", "4", "1", "2", "8"]
    assert [part in header.split() for part in throughput.PARTS] == [True] * 6


def test_parts_do_their_work_every_time_round_the_loop(tiny_parts):
    def run(name):
        return jax.tree.map(jnp.copy, tiny_parts[name][0].case.run()[0])

    (before, _), (after, _) = run("learn"), run("learn")
    assert int(after.since_target) - int(before.since_target) == REPETITIONS
    kernels = [jax.tree.leaves(learner.params) for learner in (before, after)]
    assert any(bool(jnp.any(old != new)) for old, new in zip(*kernels, strict=True))
    before, after = run("add"), run("add")
    assert int(after.position) - int(before.position) == REPETITIONS
    (_, before, _), (_, after, _) = run("environment"), run("environment")
    assert bool(jnp.any(before.obs != after.obs))


def test_each_part_is_counted_as_often_as_an_iteration_has_it(tiny_parts):
    counts = {name: count for name, (_, count) in tiny_parts.items()}
    twice = {"sample": 2, "learn": 2}  # M = 2, K = 1
    assert counts == {name: twice.get(name, 1) for name in throughput.PARTS}


def test_sizes_of_a_configuration_are_those_asked_for():
    config = workloads.sized(
        "Breakout-MinAtar", num_envs=1024, rollout_length=8, gradient_steps=3, batch_size=64
    )
    assert (config.num_envs, config.rollout_length) == (1024, 8)
    assert (config.gradient_steps, config.batch_size) == (3, 64)
    assert config.replay_capacity % (1024 * 8) == 0


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (Interval(1.2, 1.1, 1.3), "reached"),
        (Interval(1.2, 1.1, 1.4), "undecided"),
        (Interval(1.5, 1.4, 1.6), "missed"),
    ],
)
def test_a_bar_on_time_is_reached_only_by_the_whole_interval(measured, said):
    assert throughput._verdict(measured, 1.3).endswith(said)


class FakePeer:
    def __init__(self, *seconds):
        self.seconds = list(seconds)

    def measure(self):
        if not self.seconds:
            return {"missing": "it ended"}
        return {"seconds": self.seconds.pop(0), "env_steps": 100, "gradient_steps": 10}


def test_versus_forms_the_ratio_alternation_by_alternation():
    # The first call of the peer is to warm up.
    peer, own = FakePeer(99.0, 2.0, 4.0, 8.0), FakePeer(1.0, 1.0, 1.0)
    result = __main__.compare("peer", peer, own, rounds=3, bar=2.0)
    assert result["ratio"] == Interval(4.0, 2.0, 8.0)
    assert result["gradient_steps_per_second"] == Interval(2.5, 1.25, 5.0)
    assert result["jaxdqn_env_steps_per_second"] == Interval(100.0, 100.0, 100.0)
    lines = __main__.results_table([{**result, "compile_seconds": 1.0}])
    assert lines.endswith(">= 2: reached")
    assert __main__._verdict(result["ratio"], 2.1).endswith("undecided")
    assert __main__._verdict(result["ratio"], 8.1).endswith("missed")


def test_versus_says_when_a_peer_ends_early():
    result = __main__.compare(
        "peer", FakePeer(1.0, 1.0), FakePeer(1.0, 1.0, 1.0), rounds=3, bar=1.0
    )
    assert result == {"peer": "peer", "missing": "it ended"}


def test_a_missing_peer_says_what_is_missing_and_how_to_get_it():
    process = __main__.Process.peer(sys.executable, "purejaxrl", "no-such-file.py", 1)
    try:
        answer = process.receive()
    finally:
        process.close()
    assert answer["missing"] == "no-such-file.py: no such file"
    assert "purejaxrl" in answer["get"]


@pytest.mark.parametrize(
    ("argument", "complaint"),
    [
        ("pureja=x.py", "must be one of purejaxrl"),
        ("sb3=3", "ENVS dividing 10"),
        ("cleanrl", "must be cleanrl=FILE"),
    ],
)
def test_a_peer_that_is_not_understood_is_one_line(argument, complaint, capsys):
    assert __main__.main(["--peer", argument]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert complaint in said.err
    assert said.err.count("\n") == 1


def test_every_technique_says_everything_about_itself():
    assert {"device-loop", "batch-size", "n-step", "population"} <= set(registry.TECHNIQUES)
    for name, technique in registry.TECHNIQUES.items():
        assert name == technique.name
        assert all(technique._asdict().values())
        assert callable(technique.measure)


def test_registering_a_technique_twice_or_half_is_refused():
    technique = next(iter(registry.TECHNIQUES.values()))
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(technique)
    with pytest.raises(ValueError, match="costs=''"):
        registry.register(technique._replace(name="new", costs=""))


def test_speed_up_is_above_one_for_the_faster_case(monkeypatch):
    clock = Clock()
    original = timing.alternate
    monkeypatch.setattr(
        registry, "alternate", lambda *a, **k: original(*a, **k, clock=clock, wait=id)
    )
    cases = {"slow": Case(clock.takes("slow", 8.0), work=2), "fast": Case(clock.takes("fast", 1.0))}
    (result,) = registry.faster(cases, registry.QUICK, of="steps")
    assert result == registry.Result("fast", "slow", Interval(4.0, 4.0, 4.0), "steps")


def test_compare_prints_a_registered_technique_and_writes_both_files(monkeypatch, tmp_path, capsys):
    result = registry.Result("new", "old", Interval(2.0, 1.5, 2.5), "steps")
    technique = registry.Technique("mine", "p", "g", "c", "toy", lambda effort: [result])
    monkeypatch.setitem(registry.TECHNIQUES, "mine", technique)
    files = ["--json", f"{tmp_path}/t.json", "--markdown", f"{tmp_path}/t.md"]
    monkeypatch.setattr(compare, "compile_cold", lambda: None)
    assert compare.main(["--only", "mine", "--quick", *files]) == 0
    assert "mine        new      old  2.00 (1.50-2.50)  steps" in capsys.readouterr().out
    (written,) = json.loads((tmp_path / "t.json").read_text())["techniques"]
    assert written["results"][0]["speed_up"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert written["measured on"] == "toy"
    assert "| mine | new | old | 2.00 (1.50-2.50) | steps |" in (tmp_path / "t.md").read_text()


def test_an_unknown_technique_is_refused_with_the_nearest_names(capsys):
    assert compare.main(["--only", "n-stp"]) == 2
    assert capsys.readouterr().err == "error: only='n-stp': must be among n-step\n"


@pytest.mark.slow
def test_jaxdqn_in_a_process_of_its_own_does_the_work_it_is_asked_for():
    process = __main__.Process.own(30, cpu_threads=1)
    try:
        assert process.receive()["compile_seconds"] > 0
        for _ in range(2):
            answer = process.measure()
            assert answer["gradient_steps"] == 30
            assert 0 < answer["env_steps"] <= 300
            assert answer["seconds"] > 0
    finally:
        process.close()


@pytest.mark.slow
def test_what_a_checkpoint_costs_is_measured_on_a_state_of_the_size_asked_for(tmp_path):
    measured = reliability.measure_checkpoints(0.004, rounds=2, directory=str(tmp_path))
    assert measured["replay_bytes"] == pytest.approx(4e6, rel=0.1)
    assert 0 < measured["blocked_seconds"].median <= measured["write_seconds"].median
    assert measured["blocked_over_copy"].median > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_guard_is_seen_in_the_compiled_step():
    measured = reliability.measure_guard(rounds=1, iterations=20)
    assert measured["operations"]["skip"] > measured["operations"]["off"] > 50
    assert measured["on_over_off"].median > 0
