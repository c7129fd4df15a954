"""A study of presets, environments and seeds: what is refused, and what is run."""

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
    "no presets": (["--presets"], ["presets=(): must be at least one"]),
    "a preset twice": (["--presets", "dqn", "dqn"], ["presets='dqn'", "once"]),
    "no seed": (["--seeds", "0"], ["seeds=0: must be at least 1"]),
    "negative seed": (["--first-seed", "-1"], ["first_seed=-1: must be from 0"]),
    "no seed at once": (["--seeds-at-once", "0"], ["seeds_at_once=0: must be at least 1"]),
    "no steps": (["--total-rows", "0"], ["total_rows=0: must be at least 1"]),
    "no time": (["--max-seconds", "0"], ["max_seconds=0.0: must be above 0"]),
    "endless time": (["--max-seconds", "nan"], ["max_seconds=nan: must be above 0 and finite"]),
    "a file as directory": (["--out", "used"], ["out='used': must be a directory"]),
    "below a file": (["--out", "used/study"], ["out='used/study': must be writable"]),
    "misspelt field": (["--set", "gama=0.9"], ["set='gama=0.9'", "gamma"]),
    "no value": (["--set", "gamma"], ["set='gamma': must be NAME=VALUE"]),
    "word for a number": (["--set", "gamma=high"], ["set='gamma=high': must be a number"]),
    "fraction of a count": (["--set", "n_step=1.5"], ["must be a whole number"]),
    "neither true nor false": (["--set", "double=yes"], ["must be True or False"]),
    "no choice": (["--set", "optimizer=sgd"], ["must be one of adam, rmsprop, radam"]),
    "not widths": (["--set", "hidden_sizes=a,b"], ["must be whole numbers with commas"]),
    "set twice": (["--set", "gamma=0.9", "gamma=0.8"], ["the only one of gamma"]),
    "what a flag says": (["--set", "seed=3"], ["set='seed=3': must be left to --first-seed"]),
    "a sweep": (["--set", "sweep=gamma=0.9,0.8"], ["must be left out, each value is a cell"]),
    "ends when solved": (["--set", "stop_when_solved=True"], ["must be left out, every run"]),
    "out of range": (["--set", "gamma=2"], ["gamma=2.0: must be between 0 and 1"]),
    "report of nothing": (["--report", "--out", "nowhere"], ["out='nowhere': must be the dir"]),
    "report and list": (["--report", "--dry-run"], ["must come without dry_run"]),
    "misspelt flag": (["--seed", "3"], ["--seed", "--seeds"]),
}


@pytest.mark.parametrize(("argv", "parts"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(argv, parts, fake, capsys):
    Path("used").write_text("mine")
    given = [word for word in argv if word.startswith("--")]
    usual = {"--presets": "dqn", "--envs": "CartPole-v1", "--out": "study"}
    rest = [word for name, value in usual.items() if name not in given for word in (name, value)]
    assert __main__.main([*rest, *argv]) == 2
    assert_one_clear_line(capsys.readouterr(), parts)
    assert [str(path) for path in Path().rglob("*")] == ["used"]
    assert fake.made == []


def test_help_tells_every_flag_and_does_not_wait_for_jax():
    code = (
        "import sys\nfrom jaxdqn.cli.study.__main__ import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'numpy', 'gymnax', 'matplotlib', 'orbax'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    out, err = python("-c", code).communicate(timeout=60)
    assert err == ""
    for name in vars(__main__.Flags(out="study")):
        assert f"--{name.replace('_', '-')}" in out


def test_settings_are_read_by_the_type_of_their_field():
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


def test_a_cell_has_its_preset_for_the_environment_and_uses_up_its_budget():
    cell = make_cell("c51", "Asterix-MinAtar", range(3, 8), {"gamma": 0.9, "n_step": 1}, 50_000)
    wanted = preset("c51", env="Asterix-MinAtar", gamma=0.9, total_rows=50_000, seed=3)
    assert cell.config == replace(wanted, num_seeds=5)
    # What is the preset's own is no setting.
    assert cell.settings == {"gamma": 0.9}
    assert str(cell) == "c51 (gamma=0.9) on Asterix-MinAtar"
    assert not make_cell("dqn", "CartPole-v1", range(1), {}, None).config.stop_when_solved


def test_a_cell_is_the_same_wherever_and_with_whichever_seeds_it_runs():
    def key(seeds=range(5), name="dqn", env="CartPole-v1", steps=1000, **overrides):
        return make_cell(name, env, seeds, {"warmup_rows": 256, **overrides}, steps).key

    assert key(range(3, 4)) == key()
    assert key(keep=5, checkpoint_every=100, population="map", devices=5) == key()
    others = [
        key(name="double"), key(env="Acrobot-v1"), key(steps=2000), key(gamma=0.9),
        key(hidden_sizes=(64, 64)), key(eval_episodes=7),
    ]  # fmt: skip
    assert len({key(), *others}) == 1 + len(others)


def test_a_field_that_a_later_version_adds_leaves_a_cell_what_it_was():
    fields = to_dict(Config())
    assert key_of("dqn", fields) == key_of("dqn", {"gamma": fields["gamma"]})
    assert key_of("dqn", fields) != key_of("dqn", {**fields, "of_tomorrow": 1})
    # JSON may give a whole number back for a float.
    assert key_of("dqn", {"gamma": 1}) == key_of("dqn", {"gamma": 1.0})


def test_seeds_are_told_and_grouped_in_rows():
    assert ranges([7, 0, 2, 1, 4]) == [range(3), range(4, 5), range(7, 8)]
    assert seeds_text([7, 0, 2, 1]) == "seeds 0-2, 7"
    assert seeds_text([3]) == "seed 3"


def test_a_study_is_resumed_and_extended_by_what_it_lacks(fake, capsys):
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
    # A gap is filled by two runs around what is there.
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


def test_a_result_holds_the_curve_of_its_own_seed_and_what_made_it(fake):
    assert study("--first-seed", "3", "--total-rows", "6000", "--set", "gamma=0.9") == 0
    first, second = lines()
    assert cells_of([first, second]) == [("dqn", "CartPole-v1", 3), ("dqn", "CartPole-v1", 4)]
    assert second["curve"] == {"rows": [3000, 6000], "return_mean": [2.0, 4.0]}
    assert (second["final_return"], second["best_return"]) == (4, 4.5)
    assert second["training_return"] == 18 + 4
    assert (second["total_rows"], second["settings"]) == (6000, {"gamma": 0.9})
    assert second["config"]["gamma"] == 0.9
    assert second["max_episode_steps"] == 500
    assert (second["population"], second["train_seconds"], second["device_kind"]) == (
        2, 8.0, "abacus",
    )  # fmt: skip
    # One alone, whose run writes other records.
    assert study("--first-seed", "9", "--total-rows", "6000", seeds=1) == 0
    assert lines()[-1]["curve"] == {"rows": [3000, 6000], "return_mean": [4.5, 9.0]}
    assert (lines()[-1]["seed"], lines()[-1]["final_return"]) == (9, 9)
    assert lines()[-1]["training_return"] == 18 + 9


def test_seeds_at_once_split_a_cell(fake):
    assert study("--seeds-at-once", "2", seeds=5) == 0
    assert fake.seeds == [[0, 1], [2, 3], [4]]
    assert [result["seed"] for result in lines()] == [0, 1, 2, 3, 4]


def test_an_interrupted_run_writes_no_results_and_goes_on_first(fake, capsys):
    fake.before = lambda config, loggers: "SIGTERM" if config.env == "Acrobot-v1" else None
    envs = ("CartPole-v1", "Acrobot-v1", "Catch-bsuite")
    assert study(envs=envs) == 0
    assert "interrupted (SIGTERM), runs left: 2 of 3" in capsys.readouterr().out
    assert {result["env"] for result in lines()} == {"CartPole-v1"}
    assert study("--dry-run", envs=envs, seeds=4) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "dqn on CartPole-v1, 600,000 rows: seeds 0-1 done; seeds 2-3 to run",
        "dqn on Acrobot-v1, 300,000 rows: seeds 0-1 begun; seeds 2-3 to run",
        "dqn on Catch-bsuite, 100,000 rows: seeds 0-3 to run",
    ]
    # With more seeds asked for, those that had begun still go on as they were.
    fake.before = lambda config, loggers: None
    begun = fake.made[1].out
    assert study(envs=envs[1:2], seeds=4) == 0
    assert fake.made[2].out == begun
    assert fake.seeds[2:] == [[0, 1], [2, 3]]


def test_what_has_begun_goes_on_only_within_what_is_asked_for(fake):
    fake.before = lambda config, loggers: "SIGTERM"
    assert study(seeds=4) == 0
    fake.before = lambda config, loggers: None
    assert study("--seeds-at-once", "2", seeds=4) == 0
    assert fake.seeds[1:] == [[0, 1], [2, 3]]


def test_a_run_that_ended_before_its_results_were_written_is_not_run_again(fake, monkeypatch):
    with monkeypatch.context() as killed:
        killed.setattr("jaxdqn.cli.study.jobs.append_results", lambda *_: None)
        assert study(seeds=3) == 0
    assert not Path("study/results.jsonl").exists()
    assert study(seeds=3) == 0
    assert len(fake.made) == 1
    assert [result["final_return"] for result in lines()] == [0, 1, 2]
    # Nor where a line was lost: the others are not written twice.
    Path("study/results.jsonl").write_text(to_json(lines()[1]) + "\n")
    assert study(seeds=3) == 0
    assert len(fake.made) == 1
    assert [result["seed"] for result in lines()] == [1, 0, 2]


def test_checkpoints_are_removed_when_the_results_are_written(fake):
    fake.before = lambda config, loggers: "SIGTERM" if config.env == "Acrobot-v1" else None
    assert study(envs=("CartPole-v1", "Acrobot-v1")) == 0
    done, begun = (made.out for made in fake.made)
    assert not (done / "checkpoints").exists()
    assert (done / "summary.json").exists()
    assert (begun / "checkpoints").exists()


def test_a_cell_that_fails_is_told_in_a_line_and_the_others_run(fake, capsys):
    def fail(config, loggers):
        if config.env == "Acrobot-v1":
            raise RunFailed("guard='stop': loss not finite\nin chunk 3")
        if config.env == "Catch-bsuite":
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    fake.before = fail
    envs = ("Acrobot-v1", "Catch-bsuite", "CartPole-v1")
    # munchausen refuses n_step=3.
    assert study("--set", "n_step=3", presets=("munchausen", "dqn"), envs=envs) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 5
    assert said[0].startswith("error: munchausen on Acrobot-v1: n_step=3: must be 1 with")
    assert said[3] == (
        "error: dqn (n_step=3) on Acrobot-v1, seeds 0-1: guard='stop': loss not finite in chunk 3"
    )
    assert "try fewer --seeds-at-once" in said[4]
    assert cells_of(lines()) == [("dqn", "CartPole-v1", 0), ("dqn", "CartPole-v1", 1)]
    assert "not run: `jaxdqn study" in Path("study/report.md").read_text()
    assert study("--set", "n_step=3", envs=envs[2:]) == 0


def test_settings_that_no_cell_takes_are_refused_at_once(fake, capsys):
    assert study("--set", "n_step=3", presets=("munchausen",)) == 2
    assert "n_step=3: must be 1 with bootstrap='munchausen'" in capsys.readouterr().err
    assert not Path("study").exists()


def test_each_run_gets_what_is_left_of_the_time(fake, monkeypatch, capsys):
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


def test_a_signal_that_a_run_does_not_tell_of_ends_the_study(fake, capsys):
    def hear_and_finish(config, loggers):
        with stop_on_signals() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert asked.reason == "SIGTERM"

    fake.before = hear_and_finish
    assert study(envs=("CartPole-v1", "Acrobot-v1")) == 0
    assert "interrupted (SIGTERM), runs left: 1 of 2" in capsys.readouterr().out
    # The run had used up its budget.
    assert cells_of(lines()) == [("dqn", "CartPole-v1", 0), ("dqn", "CartPole-v1", 1)]


def test_a_signal_that_comes_before_a_run_listens_is_passed_on_to_it_once(fake):
    heard = []

    def set_up_and_train(config, loggers):
        signal.raise_signal(signal.SIGINT)
        with stop_on_signals() as asked:
            for _ in range(2):  # a second SIGINT would be a KeyboardInterrupt
                loggers[-1].log("metrics", {})
                heard.append(asked.reason)
        return heard[-1]

    fake.before = set_up_and_train
    before = signal.getsignal(signal.SIGINT)  # ignored, where the tests run in the background
    assert study(envs=("CartPole-v1", "Acrobot-v1")) == 0
    assert heard == ["SIGINT", "SIGINT"]
    assert not Path("study/results.jsonl").exists()
    assert signal.getsignal(signal.SIGINT) is before


def test_two_studies_do_not_share_a_directory(fake, capsys):
    def again(config, loggers):
        fake.before = lambda config, loggers: None
        assert study() == 2

    fake.before = again
    assert study() == 0
    assert "out='study': must not be in use" in capsys.readouterr().err
    assert len(fake.made) == 1


def test_groups_of_other_cells_are_no_groups_of_this_one(fake):
    fake.before = lambda config, loggers: "SIGTERM"
    assert study("--set", "gamma=0.9") == 0
    cell = make_cell("dqn", "CartPole-v1", range(2), {}, None)
    (group,) = groups_of(cell, range(2), Path("study"), None)
    assert (group.state, list(group.seeds)) == ("new", [0, 1])
