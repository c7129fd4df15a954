"""Studies over presets, environments and seeds: invalid input, and the runs that are made."""

import re
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxdqn.cli.study import __main__
from jaxdqn.cli.study.cells import groups_of, key_of, make_cell
from jaxdqn.cli.study.settings import ranges, read_settings, seeds_text
from jaxdqn.config.config import Config, replace, to_dict
from jaxdqn.config.presets import preset
from jaxdqn.errors import RunFailed
from jaxdqn.run.interrupt import stop_on_signals
from jaxdqn.storage.jsonl import to_json
from tests.cli.test_cli import assert_one_clear_line, python
from tests.studies import cells_of, lines, study

BAD = {
    "misspelt preset": (["--presets", "dqm"], ["preset='dqm'", "dqn"]),
    "misspelt environment": (["--envs", "CartPol-v1"], ["env='CartPol-v1'", "CartPole-v1"]),
    "no presets": (["--presets"], ["presets=(): must contain at least one name"]),
    "a preset twice": (["--presets", "dqn", "dqn"], ["presets='dqn'", "once"]),
    "no seed": (["--seeds", "0"], ["seeds=0: must be at least 1"]),
    "negative seed": (["--first-seed", "-1"], ["first_seed=-1: must be from 0"]),
    "no seed at once": (["--seeds-at-once", "0"], ["seeds_at_once=0: must be at least 1"]),
    "no rows": (["--total-rows", "0"], ["total_rows=0: must be at least 1"]),
    "no time": (["--max-seconds", "0"], ["max_seconds=0.0: must be above 0"]),
    "endless time": (["--max-seconds", "nan"], ["max_seconds=nan: must be above 0 and finite"]),
    "a file as directory": (["--out", "used"], ["out='used': must be a directory"]),
    "below a file": (["--out", "used/study"], ["out='used/study': must be writable"]),
    "misspelt field": (["--set", "gama=0.9"], ["set='gama=0.9'", "gamma"]),
    "no value": (["--set", "gamma"], ["set='gamma': must be NAME=VALUE"]),
    "word instead of a number": (["--set", "gamma=high"], ["set='gamma=high': must be a number"]),
    "fraction instead of a count": (["--set", "n_step=1.5"], ["must be a whole number"]),
    "neither true nor false": (["--set", "double=yes"], ["must be True or False"]),
    "no choice": (["--set", "optimizer=sgd"], ["must be one of adam, rmsprop, radam"]),
    "not widths": (["--set", "hidden_sizes=a,b"], ["must be whole numbers separated by commas"]),
    "set twice": (["--set", "gamma=0.9", "gamma=0.8"], ["the only setting of gamma"]),
    "a field with its own flag": (["--set", "seed=3"], ["set='seed=3': must be given as --first-"]),
    "a sweep": (
        ["--set", "sweep=gamma=0.9,0.8"],
        ["must be omitted: each value is a separate"],
    ),
    "stops when solved": (["--set", "stop_when=held"], ["must be omitted: every run"]),
    "out of range": (["--set", "gamma=2"], ["gamma=2.0: must be between 0 and 1"]),
    "report of nothing": (["--report", "--out", "nowhere"], ["out='nowhere': must be the dir"]),
    "report and list": (["--report", "--dry-run"], ["must not be combined with dry_run"]),
    "misspelt flag": (["--seed", "3"], ["--seed", "--seeds"]),
}


@pytest.mark.parametrize(("argv", "parts"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(argv, parts, fake, capsys):
    Path("used").write_text("mine")
    named = [word for word in argv if word.startswith("--")]
    valid = {"--presets": "dqn", "--envs": "CartPole-v1", "--out": "study"}
    rest = [word for name, value in valid.items() if name not in named for word in (name, value)]
    assert __main__.main([*rest, *argv]) == 2
    assert_one_clear_line(capsys.readouterr(), parts)
    assert [str(path) for path in Path().rglob("*")] == ["used"]
    assert fake.made == []


def test_help_lists_every_flag_and_does_not_import_jax():
    code = (
        "import sys\nfrom jaxdqn.cli.study.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'numpy', 'gymnax', 'matplotlib', 'orbax'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    out, err = python("-c", code).communicate(timeout=60)
    assert err == ""
    for name in vars(__main__.Flags(out="study")):
        flag = name.replace("_", "-")
        assert re.search(rf"--(\[no-\])?{flag}\b", out), flag


def test_settings_are_parsed_by_the_type_of_their_field():
    texts = ["gamma=1", "n-step=3", "double=True", "loss=squared", "hidden_sizes=64,32",
             "clip_norm=10", "target_tau=None", "replay_ratio=2.5", "optimizer=radam"]  # fmt: skip
    settings = read_settings(texts)
    assert settings == {
        "gamma": 1.0, "n_step": 3, "double": True, "loss": "squared", "hidden_sizes": (64, 32),
        "clip_norm": 10.0, "target_tau": None, "replay_ratio": 2.5, "optimizer": "radam",
    }  # fmt: skip
    assert [type(settings[name]) for name in ("gamma", "n_step", "clip_norm")] == [
        float, int, float,
    ]  # fmt: skip
    assert read_settings(["hidden_sizes="]) == {"hidden_sizes": ()}
    arguments = ("gravity=20", "max_steps_in_episode=50")
    assert read_settings(["env_args=gravity=20, max_steps_in_episode=50"]) == {
        "env_args": arguments
    }


def test_a_cell_takes_the_preset_for_its_environment_and_never_stops_early():
    cell = make_cell("c51", "Asterix-MinAtar", range(3, 8), {"gamma": 0.9, "n_step": 1}, 50_000)
    expected = preset("c51", env="Asterix-MinAtar", gamma=0.9, total_rows=50_000, seed=3)
    assert cell.config == replace(expected, num_seeds=5)
    # A value equal to the preset's is not a setting.
    assert cell.settings == {"gamma": 0.9}
    assert str(cell) == "c51 (gamma=0.9) on Asterix-MinAtar"
    assert make_cell("dqn", "CartPole-v1", range(1), {}, None).config.stop_when == "never"


def test_seeds_and_execution_settings_do_not_change_the_identity_of_a_cell():
    def key(seeds=range(5), name="dqn", env="CartPole-v1", rows=1000, **overrides):
        return make_cell(name, env, seeds, {"warmup_rows": 256, **overrides}, rows).key

    assert key(range(3, 4)) == key()
    assert key(keep=5, checkpoint_every=100, population="map", devices=5) == key()
    assert key(reset="pooled", reset_pool=3) == key()  # a run stores what auto chose
    others = [
        key(name="double"), key(env="Acrobot-v1"), key(rows=2000), key(gamma=0.9),
        key(hidden_sizes=(64, 64)), key(eval_episodes=7),
    ]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)


def test_a_field_added_by_a_later_version_does_not_change_the_identity_of_a_cell():
    fields = to_dict(Config())
    assert key_of("dqn", fields) == key_of("dqn", {"gamma": fields["gamma"]})
    assert key_of("dqn", fields) != key_of("dqn", {**fields, "future_field": 1})
    # JSON may return a whole number for a float.
    assert key_of("dqn", {"gamma": 1}) == key_of("dqn", {"gamma": 1.0})


def test_seeds_are_grouped_and_printed_as_ranges():
    assert ranges([7, 0, 2, 1, 4]) == [range(3), range(4, 5), range(7, 8)]
    assert seeds_text([7, 0, 2, 1]) == "seeds 0-2, 7"
    assert seeds_text([3]) == "seed 3"


def test_a_repeated_or_extended_study_trains_only_what_is_missing(fake, capsys):
    envs = ("CartPole-v1", "Acrobot-v1")
    assert study(envs=envs) == 0
    assert fake.seeds == [[0, 1], [0, 1]]
    # Nothing is run again.
    assert study(envs=envs) == 0
    assert len(fake.made) == 2
    assert "runs to make: 0" in capsys.readouterr().out
    # More seeds, and another preset.
    assert study(envs=envs[:1], presets=("dqn", "c51"), seeds=4) == 0
    assert fake.seeds[2:] == [[2, 3], [0, 1, 2, 3]]
    assert [made.preset for made in fake.made[2:]] == ["dqn", "c51"]
    # Two runs fill the gaps on both sides of a seed that is done.
    assert study("--first-seed", "6", envs=envs[1:], seeds=1) == 0
    assert study("--first-seed", "5", envs=envs[1:], seeds=3) == 0
    assert fake.seeds[4:] == [[6], [5], [7]]
    # Another setting is another cell, and so is another budget.
    assert study("--set", "gamma=0.9", envs=envs[:1]) == 0
    assert study("--total-rows", "70000", envs=envs[:1]) == 0
    assert fake.seeds[7:] == [[0, 1], [0, 1]]
    assert fake.made[7].config.gamma == 0.9
    assert fake.made[8].config.total_rows == 70_000
    assert len(lines()) == len(set(map(to_json, lines()))) == 4 + 6 + 3 + 4


def test_a_result_has_the_curve_of_its_seed_and_its_configuration(fake):
    assert study("--first-seed", "3", "--total-rows", "6000", "--set", "gamma=0.9") == 0
    first, second = lines()
    assert cells_of([first, second]) == [("dqn", "CartPole-v1", 3), ("dqn", "CartPole-v1", 4)]
    assert second["curve"] == {
        "rows": [3000, 6000],
        "return_mean": [2.0, 4.0],
        "seconds": [5.0, 10.0],
    }
    assert (second["final_return"], second["best_return"]) == (4, 4.5)
    assert second["training_return"] == 18 + 4
    assert (second["total_rows"], second["settings"]) == (6000, {"gamma": 0.9})
    assert second["config"]["gamma"] == 0.9
    assert second["max_episode_steps"] == 500
    assert (second["population"], second["train_seconds"], second["device_kind"]) == (
        2, 8.0, "abacus",
    )  # fmt: skip
    # The run of a single seed writes other records.
    assert study("--first-seed", "9", "--total-rows", "6000", seeds=1) == 0
    assert lines()[-1]["curve"] == {
        "rows": [3000, 6000],
        "return_mean": [4.5, 9.0],
        "seconds": [5.0, 10.0],
    }
    assert (lines()[-1]["seed"], lines()[-1]["final_return"]) == (9, 9)
    assert lines()[-1]["training_return"] == 18 + 9


def test_seeds_at_once_split_a_cell(fake):
    assert study("--seeds-at-once", "2", seeds=5) == 0
    assert fake.seeds == [[0, 1], [2, 3], [4]]
    assert [result["seed"] for result in lines()] == [0, 1, 2, 3, 4]


def test_an_interrupted_run_writes_no_results_and_is_resumed_first(fake, capsys):
    fake.before = lambda config, loggers: "SIGTERM" if config.env == "Acrobot-v1" else None
    envs = ("CartPole-v1", "Acrobot-v1", "Catch-bsuite")
    assert study(envs=envs) == 0
    assert "interrupted (SIGTERM), runs left: 2 of 3" in capsys.readouterr().out
    assert {result["env"] for result in lines()} == {"CartPole-v1"}
    assert study("--dry-run", envs=envs, seeds=4) == 0
    output = capsys.readouterr().out.splitlines()
    assert output == [
        "dqn on CartPole-v1, 600,000 rows: seeds 0-1 done; seeds 2-3 to run",
        "dqn on Acrobot-v1, 300,000 rows: seeds 0-1 started; seeds 2-3 to run",
        "dqn on Catch-bsuite, 100,000 rows: seeds 0-3 to run",
    ]
    # A study of more seeds resumes the started run with its own seeds.
    fake.before = lambda config, loggers: None
    started = fake.made[1].out
    assert study(envs=envs[1:2], seeds=4) == 0
    assert fake.made[2].out == started
    assert fake.seeds[2:] == [[0, 1], [2, 3]]


def test_a_started_run_is_not_resumed_if_it_has_too_many_seeds(fake):
    fake.before = lambda config, loggers: "SIGTERM"
    assert study(seeds=4) == 0
    fake.before = lambda config, loggers: None
    assert study("--seeds-at-once", "2", seeds=4) == 0
    assert fake.seeds[1:] == [[0, 1], [2, 3]]


def test_a_finished_run_without_recorded_results_is_not_trained_again(fake, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr("jaxdqn.cli.study.jobs.append_results", lambda *_: None)
        assert study(seeds=3) == 0
    assert not Path("study/results.jsonl").exists()
    assert study(seeds=3) == 0
    assert len(fake.made) == 1
    assert [result["final_return"] for result in lines()] == [0, 1, 2]
    # After the loss of one line, the other results are not written twice.
    Path("study/results.jsonl").write_text(to_json(lines()[1]) + "\n")
    assert study(seeds=3) == 0
    assert len(fake.made) == 1
    assert [result["seed"] for result in lines()] == [1, 0, 2]


def test_checkpoints_are_removed_when_the_results_are_written(fake):
    fake.before = lambda config, loggers: "SIGTERM" if config.env == "Acrobot-v1" else None
    assert study(envs=("CartPole-v1", "Acrobot-v1")) == 0
    done, started = (made.out for made in fake.made)
    assert not (done / "checkpoints").exists()
    assert (done / "summary.json").exists()
    assert (started / "checkpoints").exists()


def test_a_failed_cell_is_reported_in_one_line_and_the_others_are_trained(fake, capsys):
    def fail(config, loggers):
        if config.env == "Acrobot-v1":
            raise RunFailed("guard='stop': loss not finite\nin chunk 3")
        if config.env == "Catch-bsuite":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    fake.before = fail
    envs = ("Acrobot-v1", "Catch-bsuite", "CartPole-v1")
    # munchausen rejects double=True.
    assert study("--set", "double=True", presets=("munchausen", "dqn"), envs=envs) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 5
    assert errors[0].startswith("error: munchausen on Acrobot-v1: double=True: must be False with")
    assert errors[3] == (
        "error: dqn (double=True) on Acrobot-v1, seeds 0-1: guard='stop': loss not finite in "
        "chunk 3"
    )
    assert "try fewer --seeds-at-once" in errors[4]
    assert cells_of(lines()) == [("dqn", "CartPole-v1", 0), ("dqn", "CartPole-v1", 1)]
    assert "not run: `jaxdqn study" in Path("study/report.md").read_text()
    assert study("--set", "double=True", envs=envs[2:]) == 0


def test_settings_invalid_for_every_cell_are_rejected_before_the_study_starts(fake, capsys):
    assert study("--set", "double=True", presets=("munchausen",)) == 2
    assert "double=True: must be False with bootstrap='munchausen'" in capsys.readouterr().err
    assert not Path("study").exists()


def test_each_run_gets_the_remaining_time(fake, monkeypatch, capsys):
    now = SimpleNamespace(seconds=100.0)
    clock = SimpleNamespace(perf_counter=lambda: now.seconds)
    monkeypatch.setattr("jaxdqn.cli.study.jobs.time", clock)

    def take(config, loggers):
        now.seconds += 40

    fake.before = take
    envs = ("CartPole-v1", "Acrobot-v1", "Catch-bsuite", "MountainCar-v0")
    assert study("--max-seconds", "100", envs=envs) == 0
    assert [made.config.max_seconds for made in fake.made] == [100.0, 60.0, 20.0]
    assert "interrupted (deadline), runs left: 1 of 4" in capsys.readouterr().out


def test_a_signal_that_a_run_does_not_report_ends_the_study(fake, capsys):
    def receive_and_finish(config, loggers):
        with stop_on_signals() as request:
            signal.raise_signal(signal.SIGTERM)
            assert request.reason == "SIGTERM"

    fake.before = receive_and_finish
    assert study(envs=("CartPole-v1", "Acrobot-v1")) == 0
    assert "interrupted (SIGTERM), runs left: 1 of 2" in capsys.readouterr().out
    # The run had finished its budget.
    assert cells_of(lines()) == [("dqn", "CartPole-v1", 0), ("dqn", "CartPole-v1", 1)]


def test_a_signal_received_during_the_setup_of_a_run_is_forwarded_to_it_once(fake):
    received = []

    def set_up_and_train(config, loggers):
        signal.raise_signal(signal.SIGINT)
        with stop_on_signals() as request:
            for _ in range(2):  # a second SIGINT would be a KeyboardInterrupt
                loggers[-1].log("metrics", {})
                received.append(request.reason)
        return received[-1]

    fake.before = set_up_and_train
    before = signal.getsignal(signal.SIGINT)  # ignored if the tests run in the background
    assert study(envs=("CartPole-v1", "Acrobot-v1")) == 0
    assert received == ["SIGINT", "SIGINT"]
    assert not Path("study/results.jsonl").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_two_studies_cannot_use_one_directory_at_once(fake, capsys):
    def start_second_study(config, loggers):
        fake.before = lambda config, loggers: None
        assert study() == 2

    fake.before = start_second_study
    assert study() == 0
    assert "out='study': must not be in use" in capsys.readouterr().err
    assert len(fake.made) == 1


def test_a_run_of_another_cell_is_not_resumed(fake):
    fake.before = lambda config, loggers: "SIGTERM"
    assert study("--set", "gamma=0.9") == 0
    cell = make_cell("dqn", "CartPole-v1", range(2), {}, None)
    (group,) = groups_of(cell, range(2), Path("study"), None)
    assert (group.state, list(group.seeds)) == ("new", [0, 1])
