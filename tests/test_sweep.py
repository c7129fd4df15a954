"""A study of presets, environments and seeds: what is run, what is kept, what is reported."""

import itertools
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import matplotlib.figure
import numpy as np
import pytest
from scipy import stats

from experiments import sweep
from experiments.sweep_cells import groups_of, key_of, make_cell
from experiments.sweep_curves import draw_curves, styles
from experiments.sweep_results import append_results, read_results, repair
from experiments.sweep_settings import ranges, read_settings, seeds_text
from experiments.sweep_statistics import REPETITIONS, curve_of, estimate, iqm
from jaxdqn.config import Config, replace, to_dict
from jaxdqn.evaluation import EvalInfo
from jaxdqn.loggers import to_json
from jaxdqn.presets import preset
from jaxdqn.programs import Programs
from jaxdqn.run_directory import RunFailed, read_config
from jaxdqn.signals import asked_to_end
from jaxdqn.types import Counter, Counters, Metrics
from tests.test_cli import apart, python  # noqa: F401 (a fixture)

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "num_envs=4", "batch_size=8", "replay_capacity=256", "warmup_steps=32", "hidden_sizes=16",
    "eval_episodes=4", "eval_every=200", "log_every=100",
]  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """Set what the command would leave set."""
    monkeypatch.setenv("NPROC", "1")


class FakeRun:
    """Writes the files of a run at once; a seed returns half its number, and then its number."""

    def __init__(self):
        self.made = []
        self.before = lambda config, loggers: None
        """Called when a run begins; what it returns interrupts the run."""

    def __call__(self, config, *, out, resume, preset, loggers):
        assert resume
        self.made.append(SimpleNamespace(config=config, out=out, preset=preset))
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").write_text(to_json(to_dict(config)))
        (out / "checkpoints" / "000000000001").mkdir(parents=True, exist_ok=True)
        why = self.before(config, loggers)
        summary = self.summary(config, preset) | {"interrupted": why is not None, "ended_by": why}
        if why is None:
            (out / "evaluations.jsonl").write_text(self.evaluations(config))
        (out / "summary.json").write_text(to_json(summary))
        return SimpleNamespace(summary=summary)

    @staticmethod
    def draw(rows, envs, out):
        out.write_bytes(b"drawn")

    @property
    def seeds(self):
        """Of each run, in the order of their begin."""
        return [
            list(range(made.config.seed, made.config.seed + made.config.num_seeds))
            for made in self.made
        ]

    @staticmethod
    def summary(config, preset):
        seeds = range(config.seed, config.seed + config.num_seeds)
        fate = {"seconds_to_solve": None, "diverged_at_chunk": None}
        learners = [
            {"seed": seed, "eval_return_mean": seed, "best_eval_return_mean": seed + 0.5, **fate}
            for seed in seeds
        ]
        if len(seeds) == 1:
            learners = []
        return {
            "env": config.env, "preset": preset, "seed": config.seed, "devices": 1,
            "device_kind": "abacus", "versions": {"jax": "0.10", "jaxdqn": "0.1"},
            "eval_episodes": config.eval_episodes, "eval_return_mean": config.seed,
            "best_eval_return_mean": config.seed + 0.5, "train_seconds": 8.0, "eval_seconds": 2.0,
            "compile_seconds": 1.0, "env_steps_per_second": 1234.0,
            "gradient_steps_per_second": 567.0, "learners": learners,
        }  # fmt: skip

    @staticmethod
    def evaluations(config):
        seeds, lines = np.arange(config.seed, config.seed + config.num_seeds), []
        for share in (0.5, 1):
            record = {"purpose": "evaluate", "rows": int(config.total_steps * share) * len(seeds)}
            record["return_mean"] = float(share * seeds.mean())
            if len(seeds) > 1:
                record["learners"] = (share * seeds).tolist()
            lines += [record, {**record, "purpose": "confirm", "return_mean": -1.0}]
        return "".join(to_json(line) + "\n" for line in lines)


@pytest.fixture
def fake(monkeypatch):
    """Neither train nor draw, which takes longer than all the rest."""
    fake = FakeRun()
    monkeypatch.setattr("jaxdqn.run.run", fake)
    monkeypatch.setattr("experiments.sweep_report.draw_curves", fake.draw)
    return fake


def study(*more, presets=("dqn",), envs=("CartPole-v1",), seeds=2, out="study"):
    argv = ["--presets", *presets, "--envs", *envs, "--seeds", str(seeds), "--out", out, *more]
    return sweep.main(argv)


def lines(out="study"):
    return [json.loads(line) for line in Path(out, "results.jsonl").read_text().splitlines()]


def cells_of(results):
    return [(result["preset"], result["env"], result["seed"]) for result in results]


BAD = {
    "misspelt preset": (["--presets", "dqm"], ["preset='dqm'", "dqn"]),
    "misspelt environment": (["--envs", "CartPol-v1"], ["env='CartPol-v1'", "CartPole-v1"]),
    "no presets": (["--presets"], ["presets=(): must be at least one"]),
    "a preset twice": (["--presets", "dqn", "dqn"], ["presets='dqn'", "once"]),
    "no seed": (["--seeds", "0"], ["seeds=0: must be at least 1"]),
    "negative seed": (["--first-seed", "-1"], ["first_seed=-1: must be from 0"]),
    "no seed at once": (["--seeds-at-once", "0"], ["seeds_at_once=0: must be at least 1"]),
    "no steps": (["--total-steps", "0"], ["total_steps=0: must be at least 1"]),
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
    assert sweep.main([*rest, *argv]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 300
    for part in parts:
        assert part in line
    assert [str(path) for path in Path().rglob("*")] == ["used"]
    assert fake.made == []


def test_help_tells_every_flag_and_does_not_wait_for_jax():
    code = (
        "import sys\nfrom experiments.sweep import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'numpy', 'gymnax', 'matplotlib', 'orbax'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    out, err = python("-c", code).communicate(timeout=60)
    assert err == ""
    for name in vars(sweep.Flags(out="study")):
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
    wanted = preset("c51", env="Asterix-MinAtar", gamma=0.9, total_steps=50_000, seed=3)
    assert cell.config == replace(wanted, num_seeds=5)
    # What is the preset's own is no setting.
    assert cell.settings == {"gamma": 0.9}
    assert str(cell) == "c51 (gamma=0.9) on Asterix-MinAtar"
    assert not make_cell("dqn", "CartPole-v1", range(1), {}, None).config.stop_when_solved


def test_a_cell_is_the_same_wherever_and_with_whichever_seeds_it_runs():
    def key(seeds=range(5), name="dqn", env="CartPole-v1", steps=1000, **overrides):
        return make_cell(name, env, seeds, {"warmup_steps": 256, **overrides}, steps).key

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
    assert study("--total-steps", "70000", envs=envs[:1]) == 0
    assert fake.seeds[7:] == [[0, 1], [0, 1]]
    assert fake.made[7].config.gamma == 0.9
    assert fake.made[8].config.total_steps == 70_000
    assert len(lines()) == len(set(map(to_json, lines()))) == 4 + 6 + 3 + 4


def test_a_result_holds_the_curve_of_its_own_seed_and_what_made_it(fake):
    assert study("--first-seed", "3", "--total-steps", "6000", "--set", "gamma=0.9") == 0
    first, second = lines()
    assert cells_of([first, second]) == [("dqn", "CartPole-v1", 3), ("dqn", "CartPole-v1", 4)]
    assert second["curve"] == {"rows": [3000, 6000], "return_mean": [2.0, 4.0]}
    assert (second["final_return"], second["best_return"]) == (4, 4.5)
    assert (second["total_steps"], second["settings"]) == (6000, {"gamma": 0.9})
    assert second["config"]["gamma"] == 0.9
    assert second["max_episode_steps"] == 500
    assert (second["population"], second["train_seconds"], second["device_kind"]) == (
        2, 8.0, "abacus",
    )  # fmt: skip
    # One alone, whose run writes other records.
    assert study("--first-seed", "9", "--total-steps", "6000", seeds=1) == 0
    assert lines()[-1]["curve"] == {"rows": [3000, 6000], "return_mean": [4.5, 9.0]}
    assert (lines()[-1]["seed"], lines()[-1]["final_return"]) == (9, 9)


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
        killed.setattr("experiments.sweep_jobs.append_results", lambda *_: None)
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
    assert "not run: `python -m experiments.sweep" in Path("study/report.md").read_text()
    assert study("--set", "n_step=3", envs=envs[2:]) == 0


def test_settings_that_no_cell_takes_are_refused_at_once(fake, capsys):
    assert study("--set", "n_step=3", presets=("munchausen",)) == 2
    assert "n_step=3: must be 1 with bootstrap='munchausen'" in capsys.readouterr().err
    assert not Path("study").exists()


def test_each_run_gets_what_is_left_of_the_time(fake, monkeypatch, capsys):
    now = SimpleNamespace(seconds=100.0)
    clock = SimpleNamespace(perf_counter=lambda: now.seconds)
    monkeypatch.setattr("experiments.sweep_jobs.time", clock)

    def take(config, loggers):
        now.seconds += 40

    fake.before = take
    envs = ("CartPole-v1", "Acrobot-v1", "Catch-bsuite", "MountainCar-v0")
    assert study("--max-seconds", "100", envs=envs) == 0
    assert [made.config.max_seconds for made in fake.made] == [100.0, 60.0, 20.0]
    assert "interrupted (deadline), runs left: 1 of 4" in capsys.readouterr().out


def test_a_signal_that_a_run_does_not_tell_of_ends_the_study(fake, capsys):
    def hear_and_finish(config, loggers):
        with asked_to_end() as asked:
            signal.raise_signal(signal.SIGTERM)
            assert asked.why == "SIGTERM"

    fake.before = hear_and_finish
    assert study(envs=("CartPole-v1", "Acrobot-v1")) == 0
    assert "interrupted (SIGTERM), runs left: 1 of 2" in capsys.readouterr().out
    # The run had used up its budget.
    assert cells_of(lines()) == [("dqn", "CartPole-v1", 0), ("dqn", "CartPole-v1", 1)]


def test_a_signal_that_comes_before_a_run_listens_is_passed_on_to_it_once(fake):
    heard = []

    def set_up_and_train(config, loggers):
        signal.raise_signal(signal.SIGINT)
        with asked_to_end() as asked:
            for _ in range(2):  # a second SIGINT would be a KeyboardInterrupt
                loggers[-1].log("metrics", {})
                heard.append(asked.why)
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


@pytest.fixture
def some(fake, capsys):
    """A results file of three seeds."""
    assert study(seeds=3) == 0
    capsys.readouterr()
    return Path("study/results.jsonl")


@pytest.mark.parametrize("kept", [1, 300, -2])
def test_a_last_line_that_was_cut_short_is_dropped_and_its_seed_run_again(kept, some, fake, capsys):
    *whole, last = some.read_bytes().splitlines(keepends=True)
    some.write_bytes(b"".join(whole) + last[:kept])
    # Who only looks leaves it as it is.
    assert study("--dry-run", seeds=3) == 0
    assert "seeds 0-1 done" in capsys.readouterr().out
    assert some.read_bytes() == b"".join(whole) + last[:kept]
    assert study(seeds=3) == 0
    assert "the last line was cut short, and is dropped" in capsys.readouterr().out
    assert some.read_bytes() == b"".join(whole) + last


def test_a_last_line_without_its_line_break_is_kept(some, fake):
    before = some.read_bytes()
    some.write_bytes(before[:-1])
    assert study(seeds=4) == 0
    assert fake.seeds[1:] == [[3]]
    assert some.read_bytes().startswith(before)
    assert [result["seed"] for result in lines()] == [0, 1, 2, 3]


def damaged(lines, kind):
    result = json.loads(lines[1])
    if kind == "cut short":
        lines[1] = lines[1][:100]
    elif kind == "no object":
        lines[1] = "[1, 2]"
    elif kind == "a field lacks":
        del result["final_return"]
    elif kind == "a word for a number":
        result["seed"] = "one"
    elif kind == "a curve of two lengths":
        result["curve"]["rows"].append(1)
    elif kind == "words in the curve":
        result["curve"]["return_mean"][0] = "high"
    elif kind == "a line twice":
        result = json.loads(lines[0])
    if kind not in ("cut short", "no object"):
        lines[1] = json.dumps(result)
    return lines


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("cut short", "line 2: it is no JSON"),
        ("no object", "line 2: it is no JSON object"),
        ("a field lacks", "line 2: final_return is missing"),
        ("a word for a number", "line 2: seed='one'"),
        ("a curve of two lengths", "line 2: curve must have as many rows as return_mean"),
        ("words in the curve", "line 2: curve.return_mean must be numbers"),
        ("a line twice", "line 2 is of the same cell and seed as line 1"),
    ],
)
def test_other_damage_is_refused_with_its_line(kind, said, some, fake, capsys):
    text = "\n".join(damaged(some.read_text().splitlines(), kind)) + "\n"
    some.write_text(text)
    for more in ([], ["--report"], ["--dry-run"]):
        assert study(*more, seeds=5) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: results='study/results.jsonl': must ")
        assert said in line
    assert some.read_text() == text
    assert len(fake.made) == 1


def test_results_that_do_not_fit_on_the_disk_leave_the_file_as_it_was(some, monkeypatch):
    before, stored = some.read_bytes(), read_results(some).results
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[: len(data) // 2]))
    with pytest.raises(RunFailed, match="No space left"):
        append_results(some, stored)
    assert some.read_bytes() == before


def test_a_file_that_is_whole_is_not_touched_by_repair(some):
    before = some.stat().st_mtime_ns
    assert repair(some, read_results(some)) is None
    assert some.stat().st_mtime_ns == before
    assert read_results(Path("nowhere")).results == []


def test_the_interquartile_mean_against_hand_worked_numbers():
    assert iqm([1, 2, 3, 4, 5, 6, 7, 100]) == 4.5  # two off each end: (3 + 4 + 5 + 6) / 4
    assert iqm([50, 4, -100, 2, 3]) == 3  # one off each end: (2 + 3 + 4) / 3
    assert iqm([1, 2, 6]) == 3  # none off: 3 // 4 == 0
    assert iqm([7]) == 7
    assert iqm([[8, 0, 1, 2], [5, 5, 5, 9]]).tolist() == [1.5, 5]


@pytest.mark.parametrize("count", [1, 3, 4, 5, 7, 8, 10, 23])
def test_the_interquartile_mean_is_scipys_trimmed_mean(count):
    values = np.random.default_rng(count).normal(size=(6, count))
    np.testing.assert_allclose(iqm(values), stats.trim_mean(values, 0.25, axis=-1), rtol=1e-12)


def test_the_interval_is_that_of_all_samples_there_are():
    # Of four values 4^4 samples can be drawn, all alike likely.
    values = [1.0, 2.0, 4.0, 8.0]
    samples = [sorted(sample) for sample in itertools.product(values, repeat=4)]
    every = np.asarray([(sample[1] + sample[2]) / 2 for sample in samples])
    middle, low, high = estimate(values)
    assert middle == 3.0
    for end, share in ((low, 0.025), (high, 0.975)):
        # A discrete distribution jumps: the end is a value at which it passes the share.
        assert np.mean(every < end) <= share + 0.005
        assert np.mean(every <= end) >= share - 0.005


def test_the_interval_against_a_loop_and_against_scipys():
    values = np.random.default_rng(5).normal(size=12)
    _, low, high = estimate(values)
    generator = np.random.default_rng(0)
    draws = generator.integers(0, 12, (REPETITIONS, 12))
    means = sorted(sum(sorted(values[i] for i in draw)[3:9]) / 6 for draw in draws)

    def percentile(share):
        place = share * (len(means) - 1)
        below = int(place)
        return means[below] + (place - below) * (means[below + 1] - means[below])

    np.testing.assert_allclose([low, high], [percentile(0.025), percentile(0.975)], rtol=1e-9)
    peer = stats.bootstrap(
        (values,),
        lambda x, axis: stats.trim_mean(x, 0.25, axis=axis),
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = high - low
    np.testing.assert_allclose([low, high], [peer.low, peer.high], atol=0.05 * width)


def test_a_curve_is_of_the_evaluations_that_all_seeds_have():
    def result(rows, returns):
        return {"curve": {"rows": rows, "return_mean": returns}}

    curve = curve_of([result([10, 20, 30], [1.0, 2.0, 3.0]), result([10, 30], [3.0, None])])
    assert curve.rows == [10, 30]
    assert [point.iqm for point in curve.estimates] == [2.0, 3.0]
    assert (curve.estimates[0].low, curve.estimates[0].high) == (1.0, 3.0)
    assert curve_of([]).rows == []


def test_the_report_tells_every_cell_and_every_seed(fake):
    assert study(envs=("Breakout-MinAtar",), seeds=5) == 0
    assert study(envs=("CartPole-v1",), presets=("c51",), seeds=1) == 0
    text = Path("study/report.md").read_text()
    table = [line for line in text.splitlines() if line.startswith(("| dqn", "| c51", "|  |"))]
    middle, low, high = estimate([0, 1, 2, 3, 4])
    assert table[0] == (
        "|  | CartPole-v1 (episodes of at most 500 steps) | Breakout-MinAtar (episodes of at most "
        "1,000 steps) |"
    )
    rows = {line.split(" | ")[0]: line for line in table[1:3]}
    assert f"| {middle:.2f} [{low:.2f}, {high:.2f}] (5 seeds) |" in rows["| dqn"]
    assert "| 0.00 (1 seed) |" in rows["| c51"]
    assert "- dqn, Breakout-MinAtar, 1,000,000 rows: mean 2.00" in text
    for seed in range(5):
        assert f"  - seed {seed}: {seed}.00, at best {seed}.50" in text
    assert "gymnax cuts the episodes of MinAtar" in text
    assert (
        "| dqn | Breakout-MinAtar | 5 | 10.0 | 8.0 | 1.0 | 1,234 | 567 | abacus, jax 0.10, "
        "jaxdqn 0.1 |" in text
    )


def test_what_is_not_run_is_told_with_the_command_that_runs_it(fake, capsys):
    assert study("--total-steps", "6000", "--set", "gamma=0.9", "hidden_sizes=32,32") == 0
    more = ["--total-steps", "6000", "--set", "hidden_sizes=32,32", "gamma=0.9"]
    more += ["--seeds-at-once", "3", "--report"]
    assert study(*more, presets=("dqn", "iqn"), seeds=4) == 0
    text = Path("study/report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| iqn"))
    assert row.startswith("| iqn | not run: `python -m ")
    assert "All are with `gamma=0.9`, `hidden_sizes=32,32`." in text
    commands = re.findall(r"not run: `(.*?)`", text)
    assert len(commands) == 3  # of the whole cell twice: in the table, and with its seeds
    assert "seeds 2-3 not run" in text
    assert len(fake.made) == 1
    for command in commands:
        words = shlex.split(command)
        assert words[:3] == ["python", "-m", "experiments.sweep"]
        assert sweep.main(words[3:]) == 0
    assert fake.seeds[1:] in ([[0, 1, 2], [3], [2, 3]], [[2, 3], [0, 1, 2], [3]])
    # All that was asked for is there.
    assert study(*more, presets=("dqn", "iqn"), seeds=4) == 0
    assert "not run" not in Path("study/report.md").read_text()


def test_a_gap_in_the_table_is_told_with_its_command_too(fake):
    assert study(seeds=3) == 0
    assert study(envs=("Catch-bsuite",), presets=("c51",), seeds=1) == 0
    assert sweep.main(["--report", "--out", "study"]) == 0
    text = Path("study/report.md").read_text()
    commands = re.findall(r"not run: `(.*?)`", text)
    assert len(commands) == 2
    for command in commands:
        assert sweep.main(shlex.split(command)[3:]) == 0
    assert [(made.preset, made.config.env, made.config.num_seeds) for made in fake.made[2:]] == [
        ("dqn", "Catch-bsuite", 3),
        ("c51", "CartPole-v1", 1),
    ]


def test_cells_of_one_preset_are_told_apart_by_no_more_than_they_must(fake):
    assert study(seeds=1) == 0
    assert study("--set", "gamma=0.9", seeds=1, envs=("CartPole-v1", "Catch-bsuite")) == 0
    assert study("--total-steps", "5000", seeds=1) == 0
    assert rows_of_table() == [
        "dqn (total_steps=5000)",
        "dqn (total_steps=600000)",
        "dqn (gamma=0.9)",
    ]


def rows_of_table():
    """The labels in the report's first table."""
    table = Path("study/report.md").read_text().split("| ---", 1)[1].split("\n\n")[0]
    return [line.split(" | ")[0][2:] for line in table.splitlines()[1:]]


def test_settings_that_all_cells_have_are_told_once(fake):
    assert study("--set", "gamma=0.9", "n_step=2", seeds=1) == 0
    assert study("--set", "gamma=0.9", "n_step=4", seeds=1) == 0
    assert rows_of_table() == ["dqn (n_step=4)", "dqn (n_step=2)"]
    assert "All are with `gamma=0.9`." in Path("study/report.md").read_text()


def test_the_report_is_the_same_each_time_and_needs_only_the_file(fake, monkeypatch):
    monkeypatch.setattr("experiments.sweep_report.draw_curves", draw_curves)
    assert study(seeds=7) == 0
    made = [Path("study", name).read_bytes() for name in ("report.md", "curves.png")]
    for name in ("report.md", "curves.png"):
        Path("study", name).unlink()
    assert sweep.main(["--report", "--out", "study"]) == 0
    assert [Path("study", name).read_bytes() for name in ("report.md", "curves.png")] == made
    assert made[1].startswith(b"\x89PNG")
    assert len(fake.made) == 1


def test_a_seed_that_diverged_or_has_no_return_is_told(fake):
    assert study(seeds=3) == 0
    results = lines()
    results[1] |= {"final_return": None, "best_return": None, "diverged_at_chunk": 4}
    Path("study/results.jsonl").write_text("".join(to_json(line) + "\n" for line in results))
    assert sweep.main(["--report", "--out", "study"]) == 0
    text = Path("study/report.md").read_text()
    assert "  - seed 1: no return, at best no return; diverged in chunk 4" in text
    assert "| 1.00 [0.00, 2.00] (2 seeds) |" in text


def test_curves_have_a_panel_an_environment_and_a_legend_that_hides_none(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure)
    )
    envs = [f"env-{number}" for number in range(4)]

    def results(offset):
        returns = [[offset, offset + 1.0], [offset, offset + 3.0]]
        return [{"curve": {"rows": [100, 200], "return_mean": each}} for each in returns]

    rows = {
        f"preset {i} (learning_rate=0.0001)": {env: results(i) for env in envs[:3]}
        for i in range(9)
    }
    draw_curves(rows, envs, Path("curves.png"))
    (figure,) = drawn
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == [*envs, "", ""]
    assert "rows" in panels[0].get_xlabel()
    lines = panels[0].lines
    assert [line.get_ydata().tolist() for line in lines[:2]] == [[0, 2], [1, 3]]
    # Each is told from all others by its colour and its dashes, in every panel alike.
    looks = [(line.get_linestyle(), line.get_color()) for line in lines]
    assert looks == styles()[:9]
    assert len(set(looks)) == 9
    assert len({colour for _, colour in looks[:7]}) == 7
    assert [(line.get_linestyle(), line.get_color()) for line in panels[2].lines] == looks
    assert panels[3].texts[0].get_text() == "not run"
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert len(figure.legends[0].texts) == 9
    assert not any(legend.overlaps(panel.get_tightbbox()) for panel in panels[:4])
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1


def test_a_report_that_cannot_be_written_is_refused_in_a_line(some, capsys):
    Path("study/report.md").unlink()
    Path("study/report.md").mkdir()
    assert sweep.main(["--report", "--out", "study"]) == 2
    assert "out='study/report.md': must be writable" in capsys.readouterr().err


def scripted(config, trainer, keys, state_shape):
    """Programs of two learners that compile nothing; the return is 10 * learner + chunks."""

    def state(chunks):
        rows = chunks * config.iterations_per_chunk * config.rows_per_iteration
        count = Counter(high=np.zeros(2, np.int32), low=np.full(2, rows, np.int32))
        params = {"kernel": np.full((2, 3), chunks, np.float32)}
        return SimpleNamespace(
            agent=SimpleNamespace(params=params), counters=Counters(count, count, count)
        )

    def chunk(before):
        after = state(int(before.agent.params["kernel"][0, 0]) + 1)
        metrics = Metrics(*(np.ones(2, np.float32) for _ in Metrics._fields))
        return after, (metrics._replace(skipped=np.zeros(2), lost=np.zeros(2)), after.counters)

    def evaluate(params, key, count):
        learners, chunks = np.arange(2) * 10, params["kernel"][..., 0]
        returns = np.broadcast_to(np.expand_dims(learners + chunks, -1), (2, 4))
        return EvalInfo(returns, np.full((2, 4), 7))

    fields = dict.fromkeys(Programs._fields)
    fields |= {"init": lambda key: state(0), "chunk": chunk, "evaluate": evaluate}
    return Programs(**fields | {"evaluate_one": evaluate, "copy": np.array})


def test_results_are_what_the_host_loop_writes(monkeypatch, capsys):
    monkeypatch.setattr("jaxdqn.run.compile_programs", scripted)
    argv = ["--total-steps", "632", "--set", *SMALL, "checkpoint_every=0"]
    assert study(*argv) == 0
    assert "recorded seeds 0-1: return 6.00, 16.00" in capsys.readouterr().out
    # Six chunks of 100 rows, and an evaluation after each two.
    for seed, result in enumerate(lines()):
        assert (result["seed"], result["population"], result["eval_episodes"]) == (seed, 2, 4)
        assert result["curve"] == {
            "rows": [200, 400, 600],
            "return_mean": [10.0 * seed + chunks for chunks in (2, 4, 6)],
        }
        assert result["final_return"] == result["best_return"] == 10 * seed + 6
        assert result["versions"]["jax"] == jax.__version__
        assert result["env_steps_per_second"] > 0


@pytest.mark.slow
def test_a_small_study_from_end_to_end(capsys):
    argv = ["--total-steps", "600", "--set", *SMALL]
    assert study(*argv) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "recorded seeds 0-1: return" in said.out
    first, second = lines()
    assert cells_of([first, second]) == [("dqn", "CartPole-v1", 0), ("dqn", "CartPole-v1", 1)]
    for result in (first, second):
        assert len(result["curve"]["rows"]) >= 3
        # 600 rows, of which the last chunk may make more.
        assert 600 <= result["curve"]["rows"][-1] < 700
        assert result["curve"]["return_mean"][-1] == result["final_return"]
        assert max(result["curve"]["return_mean"]) == result["best_return"]
        assert result["env_steps_per_second"] > 0
    assert first["curve"]["return_mean"] != second["curve"]["return_mean"]
    assert "(2 seeds)" in Path("study/report.md").read_text()
    place = Path("study/cells", first["run"])
    assert (read_config(place).num_seeds, (place / "checkpoints").exists()) == (2, False)
    assert {path.name for path in Path("study").iterdir()} == {
        ".lock", "cells", "curves.png", "report.md", "results.jsonl",
    }  # fmt: skip
    # It is there: nothing is compiled.
    before = time.perf_counter()
    assert study(*argv) == 0
    assert "runs to make: 0" in capsys.readouterr().out
    assert time.perf_counter() - before < 5
    assert len(lines()) == 2


@pytest.mark.slow
def test_a_killed_study_comes_to_the_same_results_as_one_that_was_not():
    long = ["--presets", "dqn", "pqn", "--envs", "CartPole-v1", "--seeds", "2"]
    long += ["--total-steps", "81920", "--set", "eval_every=20480", "eval_episodes=8"]
    long += ["log_every=4096", "hidden_sizes=16"]
    whole = python("-m", "experiments.sweep", *long, "--out", "whole")
    _, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err

    def rows():
        return sum(len(file.read_text()) for file in Path().glob("killed/cells/*/metrics.jsonl"))

    for kills in range(4):
        before = rows()
        process = python("-m", "experiments.sweep", *long, "--out", "killed")
        while kills < 3 and process.poll() is None and rows() <= before:
            time.sleep(0.05)
        if kills < 3:
            process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=300)
        assert "Traceback" not in err
        assert process.returncode == 0, err
        assert ("interrupted (SIGTERM)" in out) == (kills < 3)

    clocks = ("seconds", "per_second")

    def told(out):
        return [
            {name: value for name, value in line.items() if not name.endswith(clocks)}
            for line in lines(out)
        ]

    assert told("killed") == told("whole")
    assert len(told("whole")) == 4


def test_groups_of_other_cells_are_no_groups_of_this_one(fake):
    fake.before = lambda config, loggers: "SIGTERM"
    assert study("--set", "gamma=0.9") == 0
    cell = make_cell("dqn", "CartPole-v1", range(2), {}, None)
    (group,) = groups_of(cell, range(2), Path("study"), None)
    assert (group.state, list(group.seeds)) == ("new", [0, 1])
