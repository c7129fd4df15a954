"""Techniques: registry, speed-ups, and the command ``jaxdqn compare``."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks import timing, workloads
from benchmarks.techniques import __main__ as compare
from benchmarks.techniques import (
    devices,
    family,
    page,
    picture,
    ray,
    records,
    registry,
    synchronous,
    table,
)
from benchmarks.timing import Case, Interval
from jaxdqn.types import Network
from tests.clock import Clock
from tests.studies import ROOT

RESULT = registry.Result("new", "old", Interval(2.0, 1.5, 2.5), "steps", "8 bytes")


def technique(name="mine", results=(RESULT,), reason=None):
    """Return a technique with given results, which counts how often it is measured."""

    def measure(effort):
        measured.append(name)
        if reason is not None:
            raise registry.Skipped(reason)
        return list(results)

    measured: list[str] = []
    made = registry.Technique(name, "p", "s", "c", "a", "d", "w", "toy", measure)
    return made, measured


@pytest.fixture
def toys(monkeypatch):
    """Techniques ``one``, ``two`` and ``away``, which is skipped, in place of the real ones."""
    monkeypatch.setattr(compare, "compile_cold", lambda: None)
    monkeypatch.setattr(compare, "_use_compilation_cache", lambda: None)
    slower = RESULT._replace(case="worse", speed_up=Interval(0.5, 0.4, 0.6))
    made = [technique("one"), technique("two", (RESULT, slower)), technique("away", (), "not here")]
    monkeypatch.setattr(registry, "TECHNIQUES", {each.name: each for each, _ in made})
    return {each.name: measured for each, measured in made}


def test_every_technique_is_described_completely():
    assert len(registry.TECHNIQUES) >= 40
    assert set(registry.TECHNIQUES) == set(table.MEASUREMENTS)
    for name, each in registry.TECHNIQUES.items():
        assert name == each.name
        assert all(each._asdict().values())
        assert callable(each.measure)


def test_a_repeated_or_incomplete_technique_is_rejected():
    each = next(iter(registry.TECHNIQUES.values()))
    with pytest.raises(ValueError, match="registered twice"):
        registry.register(each)
    with pytest.raises(ValueError, match="claimed=''"):
        registry.register(each._replace(name="new", claimed=""))


def test_the_speed_up_of_the_faster_case_is_above_one(monkeypatch):
    clock = Clock()
    original = timing.alternate
    monkeypatch.setattr(
        registry, "alternate", lambda *a, **k: original(*a, **k, clock=clock, wait=id)
    )
    cases = {"slow": Case(clock.work("slow", 8.0), work=2), "fast": Case(clock.work("fast", 1.0))}
    notes = {"fast": "4 bytes"}
    (result,) = registry.speed_ups(cases, registry.QUICK, of="steps", notes=notes)
    expected = registry.Result("fast", "slow", Interval(4.0, 4.0, 4.0), "steps", "4 bytes")
    assert result == expected


def test_compare_writes_json_markdown_and_a_picture(toys, tmp_path, capsys):
    files = ("--json", f"{tmp_path}/t.json", "--markdown", f"{tmp_path}/t.md")
    assert compare.main(["--quick", *files, "--picture", f"{tmp_path}/t.png"]) == 0
    printed = capsys.readouterr().out
    assert "2.00 (1.50-2.50)" in printed
    assert "slower here" in printed
    one, two, away = json.loads((tmp_path / "t.json").read_text())["techniques"]
    assert one["results"][0]["speed_up"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert [each["verdict"] for each in two["results"]] == ["faster here", "slower here"]
    assert away["skipped"] == "not here"
    assert "results" not in away
    text = (tmp_path / "t.md").read_text()
    assert "| new | old | 2.00 (1.50-2.50) | steps | faster here | 8 bytes |" in text
    assert "| 0.500 to 2.00 (faster here or slower here) |" in text
    assert "Not measured: not here." in text
    assert (tmp_path / "t.png").read_bytes().startswith(b"\x89PNG")


def test_finished_techniques_are_not_measured_again(toys, tmp_path):
    file = ["--json", f"{tmp_path}/t.json", "--quick"]
    assert compare.main(["--only", "two", *file]) == 0
    assert compare.main(file) == 0
    assert {name: len(calls) for name, calls in toys.items()} == {"one": 1, "two": 1, "away": 1}
    names = [each["technique"] for each in json.loads(Path(file[1]).read_text())["techniques"]]
    assert names == ["one", "two", "away"]
    assert compare.main([*file, "--fresh"]) == 0
    assert {name: len(calls) for name, calls in toys.items()} == {"one": 2, "two": 2, "away": 2}


def test_an_interrupted_run_keeps_what_it_measured(toys, tmp_path, monkeypatch):
    def interrupted(effort):
        raise KeyboardInterrupt

    broken = registry.TECHNIQUES["two"]._replace(measure=interrupted)
    monkeypatch.setitem(registry.TECHNIQUES, "two", broken)
    with pytest.raises(KeyboardInterrupt):
        compare._main(["--json", f"{tmp_path}/t.json"])
    (one,) = json.loads((tmp_path / "t.json").read_text())["techniques"]
    assert one["technique"] == "one"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"effort": {}}, "must be measured with the same --quick"),
        ({"stamp": {}}, "must be of the same device_kind"),
        ({"techniques": None}, "must be of the same device_kind"),
    ],
)
def test_a_file_of_other_measurements_is_not_continued(change, message, toys, tmp_path, capsys):
    file = tmp_path / "t.json"
    assert compare.main(["--quick", "--json", str(file)]) == 0
    report = {**json.loads(file.read_text()), **change}
    if change.get("techniques", ()) is None:
        report["stamp"]["device_kind"] = "another"
    file.write_text(json.dumps(report))
    assert compare.main(["--quick", "--json", str(file)]) == 2
    assert message in capsys.readouterr().err
    file.write_text("[]")
    assert compare.main(["--resume", str(file)]) == 2
    assert "must be a file of jaxdqn compare --json" in capsys.readouterr().err


def test_quick_starts_no_technique_after_its_time(toys, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "_QUICK_SECONDS", -1.0)
    assert compare.main(["--quick", "--json", f"{tmp_path}/t.json"]) == 0
    one, *_ = json.loads((tmp_path / "t.json").read_text())["techniques"]
    assert one["skipped"] == "no time left with --quick"
    assert not toys["one"]


def test_recorded_files_become_one_page(toys, tmp_path):
    assert compare.main(["--only", "one", "--json", f"{tmp_path}/1.json"]) == 0
    assert compare.main(["--json", f"{tmp_path}/2.json"]) == 0
    read = ["--read", f"{tmp_path}/1.json", f"{tmp_path}/2.json"]
    assert compare.main([*read, "--markdown", f"{tmp_path}/page.md"]) == 0
    assert {name: len(calls) for name, calls in toys.items()} == {"one": 2, "two": 1, "away": 1}
    assert (tmp_path / "page.md").read_text().count("Measured on") == 2


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        ((2.0, 1.01, 3.0), "faster here"),
        ((0.9, 0.8, 0.99), "slower here"),
        ((1.1, 0.9, 1.3), "no difference shown"),
    ],
)
def test_the_verdict_follows_from_the_interval(interval, expected):
    assert records.verdict(Interval(*interval)._asdict()) == expected


def test_the_picture_encloses_every_interval():
    speed_up = {"median": 30.0, "low": 0.03, "high": 80.0}
    ticks = picture._ticks([{"speed_up": speed_up}])
    assert (ticks[0], ticks[-1]) == (0.02, 100.0)
    assert 1.0 in ticks


def test_the_page_of_techniques_is_generated(tmp_path):
    """The page in docs/ is the one that the recorded measurements give."""
    files = ["techniques.json", "techniques-more.json", "techniques-host.json"]
    stamps, found = compare._read([str(ROOT / "benchmarks" / "results" / name) for name in files])
    assert (ROOT / "docs" / "techniques.md").read_text() == page.as_markdown(stamps, found)


def test_runs_on_ray_are_compared_with_their_ages(monkeypatch):
    rates = {"1 actor": 10.0, "2 actors": 20.0, "4 actors": 5.0}
    given = {ray.CASES[name]: rate for name, rate in rates.items()}

    def measure(case, rows):
        return {"gradient_steps_per_second": given[tuple(case)], "sample_age": given[tuple(case)]}

    monkeypatch.setattr(ray, "measure", measure)
    monkeypatch.setattr(ray.importlib.util, "find_spec", lambda name: name)
    two, four = ray.measure_actors(registry.FULL)
    assert (two.case, two.against, two.speed_up) == ("2 actors", "1 actor", Interval(2, 2, 2))
    assert (four.speed_up.median, four.notes) == (0.5, "sample age 5")
    with pytest.raises(registry.Skipped, match="left out with --quick"):
        ray.measure_actors(registry.QUICK)
    monkeypatch.setattr(ray.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(registry.Skipped, match="Ray is not installed"):
        ray.measure_parameter_server(registry.FULL)


def test_calls_of_devices_are_whole_averagings():
    for effort in (registry.QUICK, registry.FULL):
        iterations = devices._rounded(effort).iterations
        assert iterations >= effort.iterations
        assert iterations % 96 == iterations % 8 == 0


def test_an_unknown_technique_is_an_error_with_the_nearest_names(capsys):
    assert compare.main(["--only", "n-stp"]) == 2
    assert (
        capsys.readouterr().err
        == "error: only='n-stp': must be a known technique; nearest: n-step\n"
    )


@pytest.mark.slow
def test_gradient_steps_are_measured_with_one_and_two_products_of_noisy_layers(monkeypatch):
    products = []

    def prepare(part, repetitions):
        program = jax.make_jaxpr(part.body)(jax.random.key(0), part.fixed, part.carry)
        products.append(str(program).count("dot_general["))
        return workloads.Prepared(Case(lambda: ()), 0.0)

    monkeypatch.setattr(workloads, "prepare_part", prepare)
    (result,) = family.measure_noisy_product(registry.QUICK._replace(rounds=1, seconds=0.0))
    two, one = products
    assert one < two
    assert (result.case, result.against) == ("one product", "two products")


def test_sequences_are_measured_with_the_torso_in_and_outside_the_scan(monkeypatch):
    built, measured = Network(init=id, apply=id, initial_carry=id, unroll=id), []

    def prepare(config, iterations, *, around_network):
        assert config.recurrent == "lstm"
        measured.append(around_network(built))
        return workloads.Prepared(Case(lambda: ()), 0.0)

    monkeypatch.setattr(workloads, "prepare_learning", prepare)
    (result,) = family.measure_sequence_torso(registry.QUICK)
    assert measured == [built._replace(unroll=None), built]
    assert (result.case, result.against) == ("outside the scan", "in the scan")
    assert result.notes.startswith("in the scan ")
    assert result.notes.count(" ms") == 2


def test_the_command_registers_each_technique_once():
    """Run the package as ``__main__``: a second import by name would register twice and raise."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.techniques", "--only", "n-stp"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == "error: only='n-stp': must be a known technique; nearest: n-step\n"


def mode_of_dispatch(effort):
    """Return a result whose case is the dispatch mode of this process."""
    mode = jax.config.read("jax_cpu_enable_async_dispatch")
    speed_up = Interval(float(effort.rounds), 1.0, 2.0)
    return [registry.Result(f"asynchronous: {mode}", "baseline", speed_up, "rows")]


def end_with_an_error(effort):
    raise ValueError("no such simulator")


@pytest.mark.slow  # starts two processes
def test_a_technique_is_measured_in_a_process_with_synchronous_dispatch():
    (asynchronous,) = mode_of_dispatch(registry.QUICK)
    assert asynchronous.case == "asynchronous: True"
    (result,) = synchronous.with_synchronous_dispatch(mode_of_dispatch)(registry.QUICK)
    assert result == asynchronous._replace(case="asynchronous: False")
    with pytest.raises(RuntimeError, match=r"end_with_an_error: .*no such simulator"):
        synchronous.with_synchronous_dispatch(end_with_an_error)(registry.QUICK)


@pytest.mark.parametrize("name", ["host-loop", "host-overlap", "host-environments"])
def test_training_in_host_environments_is_measured_with_synchronous_dispatch(name, monkeypatch):
    commands = []

    class Answering:
        def __init__(self, command):
            commands.append(command)

        def receive(self):
            fields = {"case": "a", "against": "b", "speed_up": [2, 1, 3], "of": "rows", "notes": ""}
            return {"results": [fields]}

        def close(self):
            commands.append("closed")

    monkeypatch.setattr(synchronous, "Process", Answering)
    (result,) = registry.TECHNIQUES[name].measure(registry.QUICK)
    assert result == registry.Result("a", "b", Interval(2, 1, 3), "rows")
    command, closed = commands
    assert closed == "closed"
    module, _, function = command[3].partition(":")
    assert callable(getattr(importlib.import_module(module), function).__wrapped__)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(registry.TECHNIQUES))
def test_every_technique_is_measured_or_skipped_with_a_reason(name):
    effort = registry.QUICK._replace(rounds=1, seconds=0.0, iterations=8)
    try:
        results = registry.TECHNIQUES[name].measure(effort)
    except registry.Skipped as skipped:
        pytest.skip(str(skipped))
    assert results
    assert all(0 < each.speed_up.median < 1e4 for each in results)
    assert all(each.case != each.against for each in results)
