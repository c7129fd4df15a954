"""Scaling over devices: what is measured, and the model of it."""

import json

import pytest

from benchmarks import scaling, scaling_cases, scaling_model
from benchmarks.scaling_model import Link, Work

WORK = Work(seconds=1e-3, parameters=1_000_000, coding=1e-4)
LINK = Link(bytes_per_second=1e9, latency=1e-5)


def test_a_ring_by_hand():
    # Of 4 devices: 6 messages of a quarter of 4 MB, 1 ms each at 1 GB/s, and 10 us before each.
    assert scaling_model.ring_seconds(4e6, 4, LINK) == pytest.approx(6 * (1e-5 + 1e-3))
    assert scaling_model.ring_seconds(4e6, 1, LINK) == 0


def test_a_step_by_hand():
    def step(form, **more):
        return scaling_model.step_seconds(WORK, LINK, 4, form=form, **more)

    assert step("float32") == pytest.approx(1e-3 + 6.06e-3)
    assert step("bfloat16") == pytest.approx(1e-3 + 1e-4 + 6 * (1e-5 + 0.5e-3))
    assert step("int8") == pytest.approx(1e-3 + 1e-4 + 6 * (1e-5 + 0.25390625e-3))
    assert step("average", every=6) == pytest.approx(1e-3 + 1.01e-3)
    assert scaling_model.efficiency(WORK, LINK, 4, form="float32") == pytest.approx(1 / 7.06)
    # Alone nothing is sent, and nothing encoded.
    for form in scaling_model.FORMS:
        assert scaling_model.step_seconds(WORK, LINK, 1, form=form) == 1e-3
    with pytest.raises(ValueError, match=r"^form='int4': must be one of"):
        step("int4")


def test_where_a_saving_pays():
    assert scaling_model.pays_from(WORK, LINK, "int8") == 2
    # 40 bytes: there is nothing to compress, but there are messages to spare.
    tiny = WORK._replace(parameters=10)
    assert scaling_model.pays_from(tiny, LINK, "int8") is None
    assert scaling_model.pays_from(tiny, LINK, "average") == 4
    seconds = scaling_model.longest_step_worth_saving(LINK, 1_000_000, 4, gain=1.05)
    assert seconds == pytest.approx(6.06e-3 / 0.05)
    slow = WORK._replace(seconds=seconds)
    assert scaling_model.efficiency(slow, LINK, 4, form="float32") == pytest.approx(1 / 1.05)


def test_a_link_is_found_again_from_all_reduces_over_it():
    points = [
        (size, devices, scaling_model.ring_seconds(size, devices, LINK))
        for size in (4e3, 4e6)
        for devices in (2, 8)
    ]
    found = scaling_model.fit_link(points)
    assert found.bytes_per_second == pytest.approx(1e9)
    assert found.latency == pytest.approx(1e-5)
    with pytest.raises(ValueError, match="two sizes or more"):
        scaling_model.fit_link(points[:1])


def test_the_check_holds_predictions_against_measurements(tmp_path, capsys):
    def of(median):
        return {"median": median, "low": median, "high": median}

    def row(devices, silent):
        work = Work(1e-6 * silent, 1_000_000)
        took = 1e6 * scaling_model.step_seconds(work, LINK, devices, form="float32")
        return {"setting": "x", "D": devices, "silent, us": of(silent), "parameters": 1_000_000,
                "us/gradient step": of(2 * took)}  # fmt: skip

    link = [
        {
            "bytes": size,
            "D": 2,
            "us/all-reduce": of(1e6 * scaling_model.ring_seconds(size, 2, LINK)),
        }
        for size in (4_000, 4_000_000)
    ]
    file, out = tmp_path / "scaling.json", tmp_path / "model.json"
    file.write_text(json.dumps({"link": link, "strong": [row(1, 9.0), row(4, 500.0)], "weak": []}))
    assert scaling_model.main(["--check", str(file), "--json", str(out)]) == 0
    assert "-50%" in capsys.readouterr().out
    (checked,) = json.loads(out.read_text())["check"]
    assert checked["predicted, us"] == pytest.approx(500 + 6060)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step-us", "0"], "step_us=0.0: must be above 0"),
        (["--latency-us", "-1"], "latency_us=-1.0: must be at least 0"),
        (["--devices", "0"], "devices=(0,): must be at least 1 each"),
        (["--check", "nowhere.json"], "must be a file of benchmarks.scaling"),
    ],
)
def test_the_model_refuses_what_makes_no_sense(arguments, said, capsys):
    assert scaling_model.main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "section",
    [
        "link",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("strong", "communication", "population")
        ),
    ],
)
def test_every_section_measures_what_its_table_shows(section, monkeypatch):
    effort = scaling_cases.Effort(1, 0.0, 8, (1, 2), (1, 2))
    small = scaling_cases._sized("CartPole-v1", num_envs=2, batch_size=64, hidden_sizes=(8,))
    monkeypatch.setattr(scaling_cases, "_settings", lambda: {"small": small})
    monkeypatch.setattr(scaling_cases, "_matched", lambda: small)
    rows = scaling_cases.measure_section(section, effort)
    assert all(set(scaling.HEADERS[section]) <= set(row) for row in rows)
    if section == "strong":
        assert [row["D"] for row in rows] == [1, 2]
        assert rows[0]["speed-up over 1"] == (1, 1, 1)
    if section == "communication":
        shares = {row["form"]: float(row["of float32"]) for row in rows}
        assert shares["average every 8"] == 0.125
        assert shares["bfloat16"] == pytest.approx(0.5, abs=0.01)
        assert shares["int8"] < 0.35  # a network of a few dozen parameters
    if section == "population":
        assert {row["P"] for row in rows} == {1, 2}
