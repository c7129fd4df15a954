"""Every peer in one command: environments, the machine, and the order of the measurements."""

import importlib
import importlib.metadata
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.processes import Process
from benchmarks.timing import Interval
from benchmarks.versus import __main__, environments, every_peer, matched, peers
from benchmarks.versus.busy import Limits, Use, machine_use, wait_until_quiet
from benchmarks.versus.drivers.work import milabench
from benchmarks.versus.environments import REQUIREMENTS, Built, build_environment

READY = {"compile_seconds": 1.0, "device_kind": "cpu"}
LIMITS = Limits(load=0.5, cpu_share=0.1)
QUIET, BUSY = Use(0.1, 0.01), Use(2.0, 0.9)


class FakeCommands:
    """Run of commands that records them; those with a word of ``failing`` fail."""

    def __init__(self, *failing, errors="ERROR: No matching distribution\nhint"):
        self.failing, self.errors, self.commands = failing, errors, []

    def __call__(self, command, **_):
        self.commands.append(command)
        if "venv" in command:
            Path(command[-1], "bin").mkdir(parents=True)
        failed = any(word in part for word in self.failing for part in command)
        return SimpleNamespace(
            returncode=int(failed), stderr=self.errors if failed else "", stdout="a==1\nb==2\n"
        )


def test_an_environment_is_built_once_with_the_pinned_versions(tmp_path):
    run = FakeCommands()
    built = build_environment("sb3", tmp_path, run)
    assert built.versions == ("a==1", "b==2")
    assert Path(built.python).parent.parent.parent == tmp_path
    assert {"stable-baselines3==2.9.2", "torch==2.13.0"} <= set(run.commands[1])
    count = len(run.commands)
    assert build_environment("sb3", tmp_path, run) == built
    # Peers on the host use the environment of their library.
    assert build_environment("sb3-host", tmp_path, run) == built
    assert len(run.commands) == count


def test_a_failed_installation_gives_its_reason_and_is_tried_again(tmp_path):
    built = build_environment("rejax", tmp_path, FakeCommands("rejax=="))
    assert built == Built(None, missing="cannot be installed: No matching distribution")
    assert list(tmp_path.iterdir()) == []
    assert build_environment("rejax", tmp_path, FakeCommands()).missing is None


def test_another_version_is_another_environment(tmp_path, monkeypatch):
    first = build_environment("rejax", tmp_path, FakeCommands())
    monkeypatch.setitem(REQUIREMENTS, "rejax", ("rejax==9",))
    assert build_environment("rejax", tmp_path, FakeCommands()).python != first.python


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("purejaxrl", "jax[cuda12]==0.10.2"),
        ("rejax", "jax[cuda12]==0.10.2"),
        ("cleanrl", "jax[cuda12]==0.10.2"),
        ("sbx-host", "jax[cuda12]"),
    ],
)
def test_peers_on_jax_get_the_plug_in_of_the_accelerator(tmp_path, name, wanted):
    run = FakeCommands()
    on_gpu = build_environment(name, tmp_path, run, extra="cuda12")
    assert wanted in run.commands[1]
    on_cpu = build_environment(name, tmp_path, run)
    assert on_cpu.python != on_gpu.python
    assert not any("cuda" in word for word in run.commands[4])


def test_other_peers_are_installed_as_on_the_cpu():
    for name in ("sb3", "torchrl", "rllib"):
        assert environments.requirements_of(name, "cuda13") == REQUIREMENTS[name]


def test_the_plug_in_is_that_of_this_interpreter():
    def version_of(*installed):
        def version(package):
            if package not in installed:
                raise importlib.metadata.PackageNotFoundError
            return "1"

        return version

    assert environments.jax_extra("cpu", version_of()) is None
    assert environments.jax_extra("gpu", version_of("jax-cuda12-plugin")) == "cuda12"
    assert environments.jax_extra("gpu", version_of("jax-cuda13-plugin")) == "cuda13"
    assert environments.jax_extra("tpu", version_of("libtpu")) == "tpu"
    with pytest.raises(ValueError, match="platform='gpu': must be one that peers"):
        environments.jax_extra("gpu", version_of())


def test_all_on_a_gpu_installs_the_plug_in(fakes, monkeypatch, tmp_path):
    extras, stamped = set(), __main__.stamp()

    def build(name, directory, extra):
        extras.add(extra)
        return Built("python")

    monkeypatch.setattr(environments, "build_environment", build)
    monkeypatch.setattr(environments, "jax_extra", lambda platform: f"of-{platform}")
    monkeypatch.setattr(__main__, "stamp", lambda: {**stamped, "platform": "gpu"})
    monkeypatch.setattr(__main__, "wait_until_quiet", lambda *args, **kwargs: QUIET)
    assert __main__.main(["--all"]) == 0
    assert extras == {"of-gpu"}


def test_every_requirement_of_a_peer_from_the_index_is_pinned():
    shared = environments._SHARED
    for name in (*every_peer.FROM_INDEX, *every_peer.FROM_FILES):
        first = REQUIREMENTS[shared.get(name, name)][0]
        assert "==" in first
        assert name in matched.PEERS
        assert name in peers.PEERS


def test_every_peer_has_a_driver():
    for module, function in peers.PEERS.values():
        driver = importlib.import_module(f"benchmarks.versus.drivers.{module}")
        assert callable(getattr(driver, function))


def test_a_quiet_machine_is_measured_at_once_and_a_busy_one_is_not():
    assert wait_until_quiet(LIMITS, busy_ok=False, patience=0, use=lambda: QUIET) is QUIET
    assert wait_until_quiet(LIMITS, busy_ok=True, patience=0, use=lambda: BUSY) is BUSY
    with pytest.raises(ValueError, match=r"busy: load average .* 2\.00, processors in use 90%"):
        wait_until_quiet(LIMITS, busy_ok=False, patience=0, use=lambda: BUSY)
    for use in (Use(0.6, 0.0), Use(0.0, 0.2), Use(None, 0.2)):
        assert use.exceeds(LIMITS)
    assert not Use(None, None).exceeds(LIMITS)


def test_the_load_of_the_installations_may_fall_first():
    seen, waits = [BUSY, BUSY, QUIET], []
    used = wait_until_quiet(
        LIMITS, busy_ok=False, patience=60, use=lambda: seen.pop(0), sleep=waits.append
    )
    assert used is QUIET
    assert len(waits) == 2
    with pytest.raises(ValueError, match="give --busy-ok"):
        wait_until_quiet(LIMITS, busy_ok=False, patience=60, use=lambda: BUSY, sleep=waits.append)


def test_the_use_of_the_machine_is_a_share():
    use = machine_use(0.05)
    assert use.cpu_share is None or 0 <= use.cpu_share <= 1


@pytest.fixture
def fakes(monkeypatch):
    """Replace processes and measurements; return the list of what was done."""
    done = []

    class Ours:
        def __init__(self, work):
            self.work = work

        def receive(self):
            return {"missing": "no Ray"} if self.work == "ray" else READY

        def close(self):
            done.append(f"end {self.work}")

    def start(work, divisor):
        done.append(f"start {work}")
        return Ours(work)

    def measure(name, argument, jaxdqn, *, python, rounds, **_):
        done.append(f"{name} in {python}")
        one = Interval(1.0, 1.0, 1.0)
        rates = ("env_steps_per_second", "gradient_steps_per_second",
                 "jaxdqn_gradient_steps_per_second", "ratio")  # fmt: skip
        return {"peer": name, "compile_seconds": 1.0, "bar": 1.0, **dict.fromkeys(rates, one)}

    def best(peers, seeds, python, threads, report, *, device_kind):
        done.extend(f"best {name} {argument} in {python[name]}" for name, argument in peers)
        return []

    monkeypatch.setattr(every_peer, "start_jaxdqn", start)
    monkeypatch.setattr(every_peer, "measure_peer", measure)
    monkeypatch.setattr(every_peer, "compare_at_best", best)
    return done


def compare(given, build, quiet=lambda patience: QUIET, **more):
    return every_peer.compare_all(
        given, directory=Path("there"), build=build, quiet=quiet, rounds=3, seeds=1,
        device_kind="cpu", report=lambda line: None, **more,
    )  # fmt: skip


def test_every_peer_is_measured_or_has_a_reason(fakes):
    def build(name, directory):
        return Built(None, missing="cannot be installed") if name == "sbx" else Built(f"py-{name}")

    report = compare([("purejaxrl", "dir/dqn.py"), ("purejaxql", "dir/pqn_minatar.py")], build)
    reasons = {each["peer"]: each.get("missing") for each in report["matched"]}
    assert set(reasons) == {*every_peer.FROM_INDEX, *every_peer.FROM_FILES}
    assert reasons["sbx"] == "cannot be installed"
    assert reasons["cleanrl"] == "give --peer cleanrl=FILE (its dqn_jax.py, in a checkout)"
    assert reasons["rllib"] == "jaxdqn: no Ray"
    assert reasons["sb3"] is None
    assert "sb3 in py-sb3" in fakes
    assert "best purejaxql dir/pqn_gymnax.py in py-purejaxql" in fakes
    # One process of jaxdqn at a time.
    starts = [line for line in fakes if line.startswith(("start", "end"))]
    assert [line.split()[0] for line in starts] == ["start", "end"] * (len(starts) // 2)
    assert len(every_peer.missing_lines(report)) == 3


def test_nothing_is_installed_on_a_busy_machine(fakes):
    def busy(patience):
        raise ValueError("the machine is busy")

    def build(name, directory):
        raise AssertionError

    with pytest.raises(ValueError, match="the machine is busy"):
        compare([], build, busy)


def test_the_command_prints_the_table_and_the_reasons(fakes, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(
        environments, "build_environment", lambda name, directory, extra: Built("python")
    )
    monkeypatch.setattr(__main__, "wait_until_quiet", lambda *args, **kwargs: QUIET)
    assert __main__.main(["--all", "--json", f"{tmp_path}/all.json"]) == 0
    printed = capsys.readouterr().out
    assert "machine: load average for each core 0.10, processors in use 1%" in printed
    assert "purejaxrl, matched: not measured: give --peer purejaxrl=FILE" in printed
    assert {"matched", "at_best", "machine", "environments"} <= set(
        json.loads((tmp_path / "all.json").read_text())
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--all", "--at-best"], "all=True: must be given without"),
        (["--workload", "milabench", "--peer", "sb3"], "must be purejaxrl=FILE"),
        (["--workload", "milabench"], "must name at least one"),
        (["--all", "--scale", "0"], "scale=0: must be at least 1"),
        (["--all", "--max-load", "0"], "max_load=0.0: must be above 0"),
    ],
)
def test_invalid_flags_are_one_line(arguments, message, capsys):
    assert __main__.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1


def test_the_cadence_of_milabench_is_that_of_purejaxrl_with_128_environments():
    work = milabench(1)
    assert (work.num_envs, work.capacity, work.batch_size) == (128, 131_072, 65_536)
    assert work.rows == 2_000_000
    # Learning where the count of rows, a multiple of 128, is a multiple of 10.
    counts = range(0, 10_000, 128)
    learned = [count for count in counts if count % 10 == 0]
    assert work.rows_per_gradient_step == learned[1] - learned[0] == 640
    assert milabench(64).batch_size == 1_024


def fake_processes(monkeypatch, ours, theirs):
    """Replace the processes of jaxdqn and of a peer by their first messages."""

    def process(first):
        answer = {"seconds": 1.0, "env_steps": 10, "gradient_steps": 10}
        return lambda *_, **__: SimpleNamespace(
            receive=lambda: dict(first), measure=lambda: answer, close=lambda: None
        )

    monkeypatch.setattr(Process, "jaxdqn", process(ours))
    monkeypatch.setattr(Process, "peer", process(theirs))


GPU = {**READY, "device_kind": "NVIDIA H100 80GB HBM3"}
FILE = "purejaxrl=no-such-file.py"


@pytest.mark.parametrize("peer", [["--peer", "sb3"], ["--workload", "milabench", "--peer", FILE]])
def test_a_peer_on_another_device_is_not_measured(peer, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(__main__, "wait_until_quiet", lambda *args, **kwargs: QUIET)
    fake_processes(monkeypatch, GPU, READY)
    file = tmp_path / "results.json"
    assert __main__.main([*peer, "--rounds", "1", "--json", str(file)]) == 0
    why = "device_kind='cpu': must be 'NVIDIA H100 80GB HBM3', the device of jaxdqn"
    assert f"not measured: {why}" in capsys.readouterr().out
    for result in json.loads(file.read_text())["results"]:
        assert (result["missing"], result["device_kind"]) == (why, "cpu")


@pytest.mark.parametrize("peer", [["--peer", "sb3"], ["--workload", "milabench", "--peer", FILE]])
def test_the_device_of_both_sides_is_recorded(peer, monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "wait_until_quiet", lambda *args, **kwargs: QUIET)
    fake_processes(monkeypatch, GPU, GPU)
    file = tmp_path / "results.json"
    assert __main__.main([*peer, "--rounds", "1", "--json", str(file)]) == 0
    for result in json.loads(file.read_text())["results"]:
        assert result["device_kind"] == result["jaxdqn_device_kind"] == GPU["device_kind"]


def test_work_that_jaxdqn_cannot_run_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(__main__, "wait_until_quiet", lambda *args, **kwargs: QUIET)
    fake_processes(monkeypatch, {"missing": "No module named 'ray'"}, READY)
    assert __main__.main(["--peer", "rllib"]) != 0
    error = capsys.readouterr().err
    assert "jaxdqn cannot run the work 'ray': No module named 'ray'" in error


def test_the_bar_of_milabench_is_three_times_purejaxrl(monkeypatch, tmp_path):
    monkeypatch.setattr(__main__, "wait_until_quiet", lambda *args, **kwargs: QUIET)
    fake_processes(monkeypatch, READY, READY)
    file = tmp_path / "results.json"
    arguments = ["--workload", "milabench", "--peer", FILE, "--rounds", "1", "--json", str(file)]
    assert __main__.main(arguments) == 0
    assert {each["bar"] for each in json.loads(file.read_text())["results"]} == {3.0}


BUSY_CASES = [["--peer", "sb3"], ["--at-best", "--peer", "sb3"],
              ["--workload", "milabench", "--peer", FILE], ["--all"]]  # fmt: skip


@pytest.mark.parametrize("arguments", BUSY_CASES)
def test_a_busy_machine_is_rejected_in_every_mode(arguments, fakes, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "wait_until_quiet", partial(wait_until_quiet, use=lambda: BUSY))
    fake_processes(monkeypatch, READY, READY)
    assert __main__.main(arguments) == 2
    assert "the machine is busy: load average for each core 2.00" in capsys.readouterr().err
    assert fakes == []


@pytest.mark.parametrize("flag", ["--busy-ok", "--quick"])
@pytest.mark.parametrize("how", [[], ["--at-best"]])
def test_a_measurement_on_a_busy_machine_warns_and_records_its_use(
    how, flag, monkeypatch, tmp_path, capsys
):
    monkeypatch.setattr(__main__, "wait_until_quiet", partial(wait_until_quiet, use=lambda: BUSY))
    monkeypatch.setattr(__main__, "compare_at_best", lambda *args, **kwargs: [])
    fake_processes(monkeypatch, READY, READY)
    file = tmp_path / "results.json"
    arguments = [*how, flag, "--peer", "sb3", "--rounds", "1", "--json", str(file)]
    assert __main__.main(arguments) == 0
    assert "warning: the machine is busy (load average" in capsys.readouterr().out
    assert json.loads(file.read_text())["machine"] == BUSY.describe()


def test_peers_of_milabench_that_are_missing_are_reported(monkeypatch, capsys):
    monkeypatch.setattr(__main__, "wait_until_quiet", lambda *args, **kwargs: QUIET)
    asked = []

    def fake(*arguments, **_):
        asked.append(arguments)
        missing = {"missing": "no-such-file.py: no such file"}
        return SimpleNamespace(receive=lambda: missing, close=lambda: None)

    monkeypatch.setattr(Process, "jaxdqn", fake)
    monkeypatch.setattr(Process, "peer", fake)
    command = ["--workload", "milabench", "--scale", "64", "--peer", "purejaxrl=no-such-file.py"]
    assert __main__.main(command) == 0
    printed = capsys.readouterr().out
    assert "purejaxrl, milabench, flat: not measured: no-such-file.py" in printed
    assert "purejaxrl, milabench, convolution: not measured" in printed
    assert [each[-1] for each in asked if "stop" in each] == [
        "milabench:flat:64", "milabench:convolution:64",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("work", ["milabench:flat:128", "milabench:convolution:128", "replay"])
def test_the_jaxdqn_process_does_the_work(work):
    process = Process.jaxdqn(8, 1, "stop", work)
    try:
        assert process.receive()["compile_seconds"] > 0
        answer = process.measure()
    finally:
        process.close()
    assert answer["gradient_steps"] == 8
    assert 0 < answer["env_steps"] <= 8 * 10


def test_drivers_start_without_this_project(tmp_path):
    """Run a driver in an empty directory, as in the interpreter of a peer."""
    file = Path(peers.__file__)
    command = [sys.executable, "-P", str(file), "purejaxrl", "no-such-file.py", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["missing"] == "no-such-file.py: no such file"
