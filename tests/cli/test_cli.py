"""The commands: invalid input is reported in one clear line, and a run works from end to end."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from jaxdqn.cli import evaluate, plot, run
from jaxdqn.config.config import Config, from_dict
from jaxdqn.config.presets import preset
from jaxdqn.run.runner import RunResult

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "--num-envs", "4", "--batch-size", "8", "--replay-capacity", "256", "--warmup-rows", "32",
    "--hidden-sizes", "16", "--eval-episodes", "4", "--eval-every", "0", "--log-every", "200",
    "--n-step", "5",
]  # fmt: skip


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    """Run in an empty directory, and restore the cache settings of JAX."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = [getattr(jax.config, name) for name in names]
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    yield
    for name, value in zip(names, before, strict=True):
        jax.config.update(name, value)


BAD = {
    "misspelt preset": (["cartpol"], ["preset='cartpol'", "cartpole"]),
    "misspelt flag": (["--learning-rte", "0.1"], ["--learning-rte", "--learning-rate"]),
    "flag unlike any other": (["--qqqqq"], ["--qqqqq", "no such flag"]),
    "flag without its value": (
        ["--seed"],
        ["--seed: must be followed by a value, a whole number"],
    ),
    "word for a number": (["--seed", "one"], ["--seed one: must be a whole number"]),
    "word for an optional number": (
        ["--max-seconds", "long"],
        ["--max-seconds long: must be a number or None"],
    ),
    "word among numbers": (
        ["--hidden-sizes", "8", "wide"],
        ["--hidden-sizes wide: must be whole numbers"],
    ),
    "fraction of a count": (["--num-envs", "2.5"], ["--num-envs 2.5: must be a whole number"]),
    "unknown choice": (["--algorithm", "ppo"], ["--algorithm ppo: must be dqn or pqn"]),
    "layers of your own network": (
        ["--network", "mine:make", "--hidden-sizes", "64"],
        ["hidden_sizes=(64,)", "left out with your own network"],
    ),
    "layers of a network for pictures": (
        ["breakout", "--network", "minatar", "--hidden-sizes=64"],
        ["hidden_sizes=(64,)", "left out with network='minatar'"],
    ),
    "misspelt choice": (["--loss", "hubr"], ["loss='hubr'", "huber"]),
    "second preset": (["cartpole", "acrobot"], ["acrobot"]),
    "preset after flags": (["--seed", "1", "cartpole"], ["cartpole", "out of place"]),
    "misspelt environment": (["--env", "CartPol-v1"], ["env='CartPol-v1'", "CartPole-v1"]),
    "environment of Gymnasium": (
        ["--env", "ALE/Pong-v5"],
        ["env='ALE/Pong-v5'", "gymnax environment", "MinAtar", "gymnasium:ALE/Pong-v5"],
    ),
    "directory that is not UTF-8": (["--out", "a\udcff"], ["'a\\udcff'", "UTF-8"]),
    "continuous actions": (["--env", "Pendulum-v1"], ["env='Pendulum-v1'", "discrete"]),
    "zero": (["--num-envs", "0"], ["num_envs=0", "at least 1"]),
    "negative": (["--batch-size", "-5"], ["batch_size=-5", "at least 1"]),
    "not a number": (["--learning-rate", "nan"], ["learning_rate=nan", "finite"]),
    "infinite": (["--learning-rate", "-inf"], ["learning_rate=-inf", "finite"]),
    "batch above the replay": (["--batch-size", "65536"], ["batch_size=65536", "sampled"]),
    "batch above the warm-up": (["--batch-size", "4096"], ["batch_size=4096", "sampled"]),
    "capacity no multiple": (
        ["--replay-capacity", "1001"],
        ["replay_capacity=1001", "multiple"],
    ),
    "more than the memory": (
        ["--replay-capacity", "1073741760"],
        ["replay_capacity", "bytes", "free"],
    ),
    "devices that do not divide": (["--devices", "3"], ["num_envs=64", "devices=3"]),
    "network that does not fit": (["--network", "nature"], ["network='nature'"]),
    "directory in use": (["--out", "used"], ["out='used'", "new or an empty directory"]),
    "file as directory": (["--out", "used/file"], ["out='used/file'", "directory"]),
    "directory below a file": (["--out", "used/file/run"], ["out='used/file/run'", "writable"]),
    "impossible directory": (["--out", "/proc/run"], ["out='/proc/run'", "writable"]),
}


def assert_one_clear_line(captured, parts):
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert len(line) < 300
    for part in parts:
        assert part in line


@pytest.mark.parametrize(("argv", "parts"), BAD.values(), ids=BAD)
def test_bad_input_is_one_clear_line_and_writes_nothing(argv, parts, capsys, monkeypatch):
    monkeypatch.setattr(
        "jaxdqn.run.program_cache.compile_programs", lambda *_: pytest.fail("compiled")
    )
    monkeypatch.setattr("jaxdqn.replay.memory.free_bytes", lambda device=None: 10**9)
    Path("used").mkdir()
    Path("used/file").write_text("mine")
    assert run.main(argv) == 2
    assert_one_clear_line(capsys.readouterr(), parts)
    assert [str(path) for path in Path().rglob("*")] == ["used", "used/file"]
    assert Path("used/file").read_text() == "mine"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_an_error_is_one_line_in_any_encoding(encoding):
    process = python("-m", "experiments.run", "--seed", "x", encoding=encoding)
    _, err = process.communicate(timeout=60)
    assert err == "error: --seed x: must be a whole number\n"


def test_flags_override_the_preset_and_reach_the_configuration():
    argv = [
        "cartpole",
        "--seed",
        "7",
        "--double",
        "--hidden-sizes",
        "32",
        "16",
        "--clip-norm",
        "10",
    ]
    name, flags = run.read_flags([*argv, "--stop-when", "never", "--out", "there"])
    expected = preset(
        "cartpole",
        seed=7,
        double=True,
        hidden_sizes=(32, 16),
        clip_norm=10.0,
        stop_when="never",
    )
    assert (name, flags.out, flags.explain) == ("cartpole", "there", False)
    assert run.config_from(flags) == expected


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--mesh", "data=2,data=4"], "mesh='data=2,data=4': must name data once"),
        (["--mesh", "data=2,depth=4"], "mesh='data=2,depth=4': must be data=D,model=M"),
        (
            ["--mesh", "data=2,model=2", "--devices", "8"],
            "devices=8: must be 4 with mesh='data=2,model=2', or be left out",
        ),
        (
            ["--devices=1", "--mesh", "data=2"],  # explicit, though it is the default
            "devices=1: must be 2 with mesh='data=2', or be left out",
        ),
        (
            ["--mesh", "data=2,model=2", "--model-devices", "1"],
            "model_devices=1: must be 2 with mesh='data=2,model=2', or be left out",
        ),
        (
            ["--virtual-devices", "4"],
            "virtual_devices=4: must be at most devices=1, which the run uses; to use all of them "
            "add --devices 4",
        ),
        (["--virtual-devices", "4", "--mesh", "data=2"], "must be at most devices=2"),
    ],
)
def test_flags_that_contradict_each_other_are_rejected(argv, message, capsys):
    assert run.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    "more", [[], ["--devices", "4"], ["--model-devices", "2", "--devices", "4"]], ids=str
)
def test_a_mesh_sets_the_devices_and_may_agree_with_their_flags(more):
    _, flags = run.read_flags(["--mesh", "model=2,data=2", "--hidden-sizes", "1024", *more])
    config = run.config_from(flags)
    assert (config.devices, config.model_devices, config.replicas) == (4, 2, 2)


def test_a_mesh_replaces_the_devices_of_a_stored_configuration():
    Path("mine.json").write_text('{"devices": 8}')
    _, flags = run.read_flags(["--from", "mine.json", "--mesh", "data=2"])
    assert (flags.devices, flags.model_devices) == (2, 1)


def test_a_default_directory_is_named_after_the_run_and_claimed_by_it(monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form: "now")
    taken = Path("runs/cartpole-CartPole-v1-s0-now")
    assert run.default_out("cartpole", Config()) == taken
    # The id of an environment on the host may have a slash.
    named = run.default_out("dqn", Config(), "gymnasium:ALE/Pong-v5")
    assert named.parent == Path("runs")
    assert named.name.startswith("dqn-gymnasium-ALE-Pong-v5-s0-")
    taken.mkdir(parents=True)  # by a run that started in the same second
    asked = []

    def train(config, **options):
        asked.append(options)
        return RunResult(None, None, {}, Path("claimed"))

    monkeypatch.setattr("jaxdqn.run.runner.run", train)
    monkeypatch.setattr(run, "outcome", str)
    assert run.main([]) == 0
    assert run.main(["--out", "mine"]) == 0
    assert [(options["out"], options["unique"]) for options in asked] == [
        (taken, True),
        (Path("mine"), False),
    ]


def test_explain_describes_the_run_and_writes_nothing(capsys, monkeypatch):
    monkeypatch.setattr(
        "jaxdqn.run.program_cache.compile_programs", lambda *_: pytest.fail("compiled")
    )
    argv = [*SMALL, "--total-rows", "1000", "--gradient-steps", "3", "--target-period", "100"]
    argv += [
        "--epsilon-start",
        "1",
        "--epsilon-end",
        "0.05",
        "--epsilon-schedule",
        "linear",
        "--no-layer-norm",
    ]
    assert run.main([*argv, "--explain"]) == 0
    text = capsys.readouterr().out
    # 4 observations of 16 hidden units and 2 actions: 4*16 + 16 + 16*2 + 2 = 114 parameters.
    for part in ("CartPole-v1", "float32[4]", "[64, 4]", "parameters            114", "456",
                 "3 gradient steps", "replay ratio          6 ", "8 iterations, 32 rows",
                 "1 to 0.05, linear", "every 100 gradient steps"):  # fmt: skip
        assert part in text
    assert not list(Path().iterdir())


@pytest.mark.slow
def test_a_run_from_the_command_line_to_its_evaluation_and_curves(capsys):
    assert run.main([*SMALL, "--total-rows", "600", "--out", "there", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert "summary in there/summary.json" in captured.out
    summary = json.loads(Path("there/summary.json").read_text())
    assert (summary["env"], summary["preset"], summary["seed"]) == ("CartPole-v1", "cartpole", 3)
    config = from_dict(json.loads(Path("there/config.json").read_text()))
    assert (config.seed, config.hidden_sizes) == (3, (16,))

    assert evaluate.main(["there", "--episodes", "3", "--gif", "episode.gif"]) == 0
    output = capsys.readouterr().out
    assert "±" in output
    assert "standard error of 3 greedy episodes, 3 of them distinct)" in output
    assert Path("episode.gif").read_bytes().startswith(b"GIF")

    assert plot.main(["there", "there", "--out", "curves.png"]) == 0
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")

    # Nothing is overwritten by a second run.
    before = Path("there/summary.json").stat().st_mtime_ns
    assert run.main([*SMALL, "--out", "there"]) == 2
    assert Path("there/summary.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("command", "argv", "part"),
    [
        (evaluate, [], "RUN: must be given; jaxdqn evaluate --help describes it"),
        (evaluate, ["nowhere", "--episodes", "x"], "--episodes x: must be a whole number"),
        (evaluate, ["nowhere"], "run='nowhere': must be a run directory"),
        (evaluate, ["nowhere", "--episodes", "0"], "episodes=0: must be at least 1"),
        (evaluate, ["nowhere", "--which", "bst"], "--which bst: must be best or last"),
        (plot, ["nowhere", "--out", "x.png"], "run='nowhere': must be a run directory"),
        (plot, ["--out", "x.png"], "at least one run"),
        (plot, ["nowhere", "--x", "hours"], "--x hours: must be env_steps or seconds"),
    ],
)
def test_the_other_commands_report_invalid_input_in_one_line_too(command, argv, part, capsys):
    assert command.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert part in line


def python(*argv, encoding="utf-8"):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding}
    return subprocess.Popen(
        [sys.executable, *argv],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_misspelt_flag_ends_a_real_process_without_traceback():
    process = python("-m", "experiments.run", "--sed", "1")
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert err.startswith("error: --sed: no such flag; nearest: --seed")


@pytest.mark.slow
def test_ctrl_c_ends_a_real_process_with_everything_written():
    process = python(
        "-m", "experiments.run", *SMALL, "--total-rows", "1000000000", "--out", "there"
    )
    metrics = Path("there/metrics.jsonl")
    deadline = time.monotonic() + 120
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    # On a loaded machine XLA warns on stderr that it is slow.
    assert "Traceback" not in err
    assert process.returncode == 0
    assert json.loads(Path("there/summary.json").read_text())["interrupted"] is True
    assert all((Path("there") / name).exists() for name in ("best", "last", "curve.png"))


def test_threads_below_one_are_rejected(capsys):
    assert run.main(["--cpu-threads", "0"]) == 2
    assert "cpu_threads=0: must be at least 1" in capsys.readouterr().err
