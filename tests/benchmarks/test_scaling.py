"""Scaling over devices: the measured sections, and the model."""

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from benchmarks import configs
from benchmarks.scaling import __main__, cases, model, plan, population
from benchmarks.scaling.model import Link, Work
from benchmarks.timing import Effort
from jaxdqn.config.config import replace
from jaxdqn.errors import RunFailed

WORK = Work(seconds=1e-3, parameters=1_000_000, coding=1e-4)
LINK = Link(bytes_per_second=1e9, latency=1e-5)


def test_the_time_of_a_ring_agrees_with_a_hand_calculation():
    # 4 devices: 6 messages of a quarter of 4 MB, each 1 ms at 1 GB/s after a latency of 10 us.
    assert model.ring_seconds(4e6, 4, LINK) == pytest.approx(6 * (1e-5 + 1e-3))
    assert model.ring_seconds(4e6, 1, LINK) == 0


def test_the_time_of_a_step_agrees_with_a_hand_calculation():
    def step(form, **more):
        return model.step_seconds(WORK, LINK, 4, form=form, **more)

    assert step("float32") == pytest.approx(1e-3 + 6.06e-3)
    assert step("bfloat16") == pytest.approx(1e-3 + 1e-4 + 6 * (1e-5 + 0.5e-3))
    assert step("int8") == pytest.approx(1e-3 + 1e-4 + 6 * (1e-5 + 0.25390625e-3))
    assert step("average", every=6) == pytest.approx(1e-3 + 1.01e-3)
    assert model.efficiency(WORK, LINK, 4, form="float32") == pytest.approx(1 / 7.06)
    # One device sends and encodes nothing.
    for form in model.FORMS:
        assert model.step_seconds(WORK, LINK, 1, form=form) == 1e-3
    with pytest.raises(ValueError, match=r"^form='int4': must be one of"):
        step("int4")


def test_the_number_of_devices_from_which_a_form_is_faster():
    assert model.pays_from(WORK, LINK, "int8") == 2
    # 40 bytes: compression saves nothing, fewer messages do.
    tiny = WORK._replace(parameters=10)
    assert model.pays_from(tiny, LINK, "int8") is None
    assert model.pays_from(tiny, LINK, "average") == 4
    seconds = model.longest_step_worth_saving(LINK, 1_000_000, 4, gain=1.05)
    assert seconds == pytest.approx(6.06e-3 / 0.05)
    slow = WORK._replace(seconds=seconds)
    assert model.efficiency(slow, LINK, 4, form="float32") == pytest.approx(1 / 1.05)


def test_a_link_is_recovered_from_its_all_reduces():
    points = [
        (size, devices, model.ring_seconds(size, devices, LINK))
        for size in (4e3, 4e6)
        for devices in (2, 8)
    ]
    found = model.fit_link(points)
    assert found.bytes_per_second == pytest.approx(1e9)
    assert found.latency == pytest.approx(1e-5)
    with pytest.raises(ValueError, match="at least two values"):
        model.fit_link(points[:1])


def test_the_check_compares_predictions_with_measurements(tmp_path, capsys):
    def of(median):
        return {"median": median, "low": median, "high": median}

    def row(devices, silent):
        work = Work(1e-6 * silent, 1_000_000)
        predicted = 1e6 * model.step_seconds(work, LINK, devices, form="float32")
        return {"setting": "x", "D": devices, "silent, us": of(silent), "parameters": 1_000_000,
                "us/gradient step": of(2 * predicted)}  # fmt: skip

    link = [
        {
            "bytes": size,
            "D": 2,
            "us/all-reduce": of(1e6 * model.ring_seconds(size, 2, LINK)),
        }
        for size in (4_000, 4_000_000)
    ]
    file, out = tmp_path / "scaling.json", tmp_path / "model.json"
    file.write_text(json.dumps({"link": link, "strong": [row(1, 9.0), row(4, 500.0)], "weak": []}))
    assert model.main(["--check", str(file), "--json", str(out)]) == 0
    assert "-50%" in capsys.readouterr().out
    (checked,) = json.loads(out.read_text())["check"]
    assert checked["predicted, us"] == pytest.approx(500 + 6060)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--step-us", "0"], "step_us=0.0: must be above 0"),
        (["--latency-us", "-1"], "latency_us=-1.0: must be at least 0"),
        (["--devices", "0"], "devices=(0,): must each be at least 1"),
        (["--check", "nowhere.json"], "must be written by python -m benchmarks.scaling"),
    ],
)
def test_the_model_rejects_invalid_flags(arguments, message, capsys):
    assert model.main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "section",
    [
        pytest.param(name, marks=() if name == "link" else pytest.mark.slow)
        for name in __main__.SECTIONS
    ],
)
def test_every_section_measures_the_columns_of_its_table(section, monkeypatch):
    small_plan = plan.Plan(Effort(1, 0.0, 8), (1, 2), (1, 2))
    small = cases.divisible("CartPole-v1", num_envs=2, batch_size=64, hidden_sizes=(8,))
    wide = replace(small, hidden_sizes=(512, 64))  # narrower layers are not split
    # The processes of populations compile in half the time without optimisation.
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setattr(cases, "_settings", lambda: {"small": small})
    monkeypatch.setattr(configs, "matched", lambda: small)
    monkeypatch.setattr(cases, "divisible", lambda *_, **__: wide)
    rows = cases.measure_section(section, small_plan)
    assert all(set(__main__.HEADERS[section]) <= set(row) for row in rows)
    _EXPECTED[section](rows)


def _check_scaling(rows, column, work):
    assert [row["D"] for row in rows] == [1, 2]
    assert rows[0][column] == (1, 1, 1)
    one, two = (row["us/gradient step"].median for row in rows)
    assert rows[1][column].median == pytest.approx(work * one / two)
    assert rows[1]["efficiency"] == pytest.approx(work * one / two / 2)


def _check_communication(rows):
    shares = {row["form"]: float(row["of float32"]) for row in rows}
    assert shares["average every 8"] == 0.125
    assert shares["bfloat16"] == pytest.approx(0.5, abs=0.01)
    assert shares["int8"] < 0.35  # a network of a few dozen parameters
    assert {row["D"] for row in rows} == {2}


def _check_model(rows):
    assert [row["data x model"] for row in rows] == ["1 x 1", "2 x 1", "1 x 2"]
    single, replica, half = (int(row["parameter bytes/device"].replace(",", "")) for row in rows)
    assert single == replica
    assert half < 0.6 * single


def _check_population(rows):
    single = ["one by one", "one by one, all cores"][: 2 if (os.cpu_count() or 1) > 1 else 1]
    together = [("map", 1), ("vmap", 1), ("map", 2), ("vmap", 2), ("two processes", 1)]
    found = [(row["P"], row["how"], row["devices"]) for row in rows]
    assert found == [
        *((1, how, 1) for how in single),
        *((2, how, 1) for how in single),
        *((2, how, devices) for how, devices in together),
    ]
    assert all(row["compile s"] > 0 for row in rows)
    for row in rows:
        assert row["of each learner"].median * row["P"] == row["gradient steps/s"].median


_EXPECTED = {
    "unmapped": lambda rows: _equal([row["mapping"] for row in rows], ["shard_map", "pmap"]),
    "link": lambda rows: _equal({(row["bytes"], row["D"]) for row in rows}, _SENT),
    "strong": lambda rows: _check_scaling(rows, "speed-up over 1", 1),
    "weak": lambda rows: _check_scaling(rows, "rows learned/s over 1", 2),
    "communication": _check_communication,
    "model": _check_model,
    "population": _check_population,
}
_SENT = {(4_000, 2), (120_000, 2), (4_000_000, 2)}


def _equal(found, wanted):
    assert found == wanted


class _FakeProcess(population._LearnerProcess):
    def __init__(self, *rates):
        self.compile_seconds = 1.5
        self._rates = list(rates)

    def rate(self):
        return self._rates.pop(0)


def test_concurrent_processes_add_up_and_ratios_are_relative_to_one_by_one():
    settings = {
        ("one by one", 1): [_FakeProcess(100.0, 200.0, 100.0)],
        ("map", 2): [_FakeProcess(150.0, 300.0, 150.0)],
        ("two processes", 1): [_FakeProcess(60.0, 100.0, 60.0), _FakeProcess(40.0, 100.0, 40.0)],
    }
    one, mapped, pair = population._rows(4, settings, 3)
    assert one["gradient steps/s"] == pytest.approx((100, 100, 200))
    assert mapped["gradient steps/s"] == pytest.approx((150, 150, 300))
    assert mapped["of each learner"] == pytest.approx((37.5, 37.5, 75))
    assert mapped["over one by one"] == pytest.approx((1.5, 1.5, 1.5))
    assert pair["gradient steps/s"] == pytest.approx((100, 100, 200))
    assert pair["over one by one"] == pytest.approx((1, 1, 1))


def test_a_process_that_ends_fails_the_command_with_its_message(monkeypatch):
    config = cases.divisible("CartPole-v1", num_envs=2, num_seeds=4)
    effort = Effort(1, 0.0, 8)
    monkeypatch.setattr(population.sys, "executable", "/bin/false")
    with (
        ExitStack() as stack,
        pytest.raises(RunFailed, match=r"4 learners on 1 devices: the proc"),
    ):
        population._LearnerProcess(stack, config, effort)


def test_sections_that_need_several_devices_are_skipped_on_one(monkeypatch, capsys, tmp_path):
    one_device = plan.QUICK._replace(devices=(1,))
    stamped = {**__main__.stamp(), "devices": 1, "platform": "cpu"}
    monkeypatch.setattr(__main__, "_plan_for_devices", lambda _: (one_device, True))
    monkeypatch.setattr(__main__, "compile_cold", lambda: None)
    monkeypatch.setattr(__main__, "stamp", lambda: stamped)
    measured = []
    monkeypatch.setattr(
        __main__, "measure_section", lambda section, _: measured.append(section) or []
    )
    out = tmp_path / "scaling.json"
    assert __main__.main(["--json", str(out)]) == 0
    assert measured == ["unmapped", "population"]
    output = capsys.readouterr().out
    assert output.count("skipped: needs at least two devices, and there is one cpu device") == 5
    assert "link" not in json.loads(out.read_text())
    stamped["platform"] = "tpu"
    assert "share a TPU" in __main__.unavailable("population", stamped)


def test_the_command_succeeds_with_one_device():
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.scaling", "--quick", "--virtual-devices", "1"),
            *("--sections", "communication", "link"),
        ],
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("there is one cpu device; --virtual-devices 2 divides") == 2


def test_zero_virtual_devices_are_rejected(capsys):
    assert __main__.main(["--virtual-devices", "0"]) == 2
    assert "virtual_devices=0: must be at least 1" in capsys.readouterr().err
