"""Report of a study: means, intervals, curves, and missing cells with their commands."""

import itertools
import re
import shlex
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from scipy import stats

from benchmarks.accelerator.plan import GAMES
from jaxdqn.cli.study import __main__
from jaxdqn.cli.study.curves import draw_curves
from jaxdqn.cli.study.wall_clock import PUBLISHED, wall_clock
from jaxdqn.monitoring.statistics import REPETITIONS, curve_of, estimate, iqm
from jaxdqn.monitoring.styles import styles
from jaxdqn.storage.jsonl import to_json
from tests.studies import lines, study


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


def test_the_interval_agrees_with_the_enumeration_of_all_samples():
    # Four values have 4^4 samples, all equally likely.
    values = [1.0, 2.0, 4.0, 8.0]
    samples = [sorted(sample) for sample in itertools.product(values, repeat=4)]
    every = np.asarray([(sample[1] + sample[2]) / 2 for sample in samples])
    middle, low, high = estimate(values)
    assert middle == 3.0
    for end, share in ((low, 0.025), (high, 0.975)):
        # The distribution is discrete: at the end of the interval it steps past the share.
        assert np.mean(every < end) <= share + 0.005
        assert np.mean(every <= end) >= share - 0.005


def test_the_interval_agrees_with_a_loop_and_with_scipy():
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


def test_a_curve_has_the_evaluations_shared_by_all_seeds():
    def result(rows, returns):
        return {"curve": {"rows": rows, "return_mean": returns}}

    curve = curve_of([result([10, 20, 30], [1.0, 2.0, 3.0]), result([10, 30], [3.0, None])])
    assert curve.rows == [10, 30]
    assert [point.iqm for point in curve.estimates] == [2.0, 3.0]
    assert (curve.estimates[0].low, curve.estimates[0].high) == (1.0, 3.0)
    assert curve_of([]).rows == []
    assert curve.seconds == []


def test_the_seconds_of_a_curve_are_the_median_over_the_seeds_at_equal_rows():
    def result(rows, seconds):
        return {"curve": {"rows": rows, "return_mean": [0.0] * len(rows), "seconds": seconds}}

    seeds = [result([10, 20, 30], [1.0, 2.0, 3.0]), result([10, 30], [2.0, 9.0]),
             result([10, 30], [9.0, 5.0])]  # fmt: skip
    curve = curve_of(seeds)
    assert (curve.rows, curve.seconds) == ([10, 30], [2.0, 5.0])
    del seeds[1]["curve"]["seconds"]
    assert curve_of(seeds).seconds == [], "results of an earlier version"


def test_the_report_has_every_cell_and_every_seed(fake):
    assert study(envs=("Breakout-MinAtar",), seeds=5) == 0
    assert study(envs=("CartPole-v1",), presets=("c51",), seeds=1) == 0
    text = Path("study/report.md").read_text()
    table = [line for line in text.splitlines() if line.startswith(("| dqn", "| c51", "|  |"))]
    middle, low, high = estimate([0, 1, 2, 3, 4])
    assert table[0] == (
        "|  | CartPole-v1 (episodes of at most 500 steps) | Breakout-MinAtar (sticky actions 0.1, "
        "all six actions; episodes of at most 1,000 steps) |"
    )
    rows = {line.split(" | ")[0]: line for line in table[1:3]}
    assert f"| {middle:.2f} [{low:.2f}, {high:.2f}] (5 seeds) |" in rows["| dqn"]
    assert "| 0.00 (1 seed) |" in rows["| c51"]
    assert "- dqn, Breakout-MinAtar, 1,000,000 rows: mean 2.00" in text
    for seed in range(5):
        assert f"  - seed {seed}: final {seed}.00, best {seed}.50" in text
        assert re.search(rf"- seed {seed}: .*, 1 distinct episodes", text)
    assert "gymnax truncates the episodes of MinAtar" in text
    assert "deterministic" not in text
    assert (
        "| dqn | Breakout-MinAtar | 5 | 10.0 | 8.0 | 1.0 | 1,234 | 567 | abacus, jax 0.10, "
        "jaxdqn 0.1 |" in text
    )


def test_the_report_says_where_games_are_deterministic(fake):
    form = ["--set", "sticky_actions=0", "full_action_set=False"]
    assert study(*form, envs=("Breakout-MinAtar",)) == 0
    text = Path("study/report.md").read_text()
    assert "Breakout-MinAtar (no sticky actions, minimal action set; episodes of" in text
    assert "Without sticky actions most games are deterministic" in text


def test_the_report_gives_the_command_for_each_missing_cell(fake, capsys):
    assert study("--total-rows", "6000", "--set", "gamma=0.9", "hidden_sizes=32,32") == 0
    more = ["--total-rows", "6000", "--set", "hidden_sizes=32,32", "gamma=0.9"]
    more += ["--seeds-at-once", "3", "--report"]
    assert study(*more, presets=("dqn", "iqn"), seeds=4) == 0
    text = Path("study/report.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| iqn"))
    assert row.startswith("| iqn | not run: `jaxdqn study ")
    assert "Common settings: `gamma=0.9`, `hidden_sizes=32,32`." in text
    commands = re.findall(r"not run: `(.*?)`", text)
    assert len(commands) == 3  # the missing cell occurs twice: in the table, and with its seeds
    assert "seeds 2-3 not run" in text
    assert len(fake.made) == 1
    for command in commands:
        words = shlex.split(command)
        assert words[:2] == ["jaxdqn", "study"]
        assert __main__.main(words[2:]) == 0
    assert fake.seeds[1:] in ([[0, 1, 2], [3], [2, 3]], [[2, 3], [0, 1, 2], [3]])
    # Everything requested is recorded.
    assert study(*more, presets=("dqn", "iqn"), seeds=4) == 0
    assert "not run" not in Path("study/report.md").read_text()


def test_the_report_gives_the_command_for_a_gap_in_the_table(fake):
    assert study(seeds=3) == 0
    assert study(envs=("Catch-bsuite",), presets=("c51",), seeds=1) == 0
    assert __main__.main(["--report", "--out", "study"]) == 0
    text = Path("study/report.md").read_text()
    commands = re.findall(r"not run: `(.*?)`", text)
    assert len(commands) == 2
    for command in commands:
        assert __main__.main(shlex.split(command)[2:]) == 0
    assert [(made.preset, made.config.env, made.config.num_seeds) for made in fake.made[2:]] == [
        ("dqn", "Catch-bsuite", 3),
        ("c51", "CartPole-v1", 1),
    ]


def test_labels_of_one_preset_have_only_the_details_that_tell_them_apart(fake):
    assert study(seeds=1) == 0
    assert study("--set", "gamma=0.9", seeds=1, envs=("CartPole-v1", "Catch-bsuite")) == 0
    assert study("--total-rows", "5000", seeds=1) == 0
    assert rows_of_table() == [
        "dqn (total_rows=5000)",
        "dqn (total_rows=600000)",
        "dqn (gamma=0.9)",
    ]


def rows_of_table():
    """Return the labels in the report's first table."""
    table = Path("study/report.md").read_text().split("| ---", 1)[1].split("\n\n")[0]
    return [line.split(" | ")[0][2:] for line in table.splitlines()[1:]]


def test_settings_shared_by_all_cells_are_printed_once(fake):
    assert study("--set", "gamma=0.9", "n_step=2", seeds=1) == 0
    assert study("--set", "gamma=0.9", "n_step=4", seeds=1) == 0
    assert rows_of_table() == ["dqn (n_step=4)", "dqn (n_step=2)"]
    assert "Common settings: `gamma=0.9`." in Path("study/report.md").read_text()


def test_the_report_is_reproduced_from_the_results_file(fake, monkeypatch):
    monkeypatch.setattr("jaxdqn.cli.study.report.draw_curves", draw_curves)
    assert study(seeds=7) == 0
    made = [Path("study", name).read_bytes() for name in ("report.md", "curves.png")]
    for name in ("report.md", "curves.png"):
        Path("study", name).unlink()
    assert __main__.main(["--report", "--out", "study"]) == 0
    assert [Path("study", name).read_bytes() for name in ("report.md", "curves.png")] == made
    assert made[1].startswith(b"\x89PNG")
    assert len(fake.made) == 1


def test_a_seed_that_diverged_or_has_no_return_is_reported(fake):
    assert study(seeds=3) == 0
    results = lines()
    results[1] |= {"final_return": None, "best_return": None, "diverged_at_chunk": 4}
    Path("study/results.jsonl").write_text("".join(to_json(line) + "\n" for line in results))
    assert __main__.main(["--report", "--out", "study"]) == 0
    text = Path("study/report.md").read_text()
    returns = "final no return, best no return, exploring 19.00, 1 distinct episodes"
    assert f"  - seed 1: {returns}; diverged in" in text
    assert "| 1.00 [0.00, 2.00] (2 seeds) |" in text


def test_curves_have_one_panel_per_environment_and_a_legend_that_covers_none(monkeypatch):
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
    # Colour and dashes identify each line, equally in every panel.
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


def test_curves_with_seconds_have_a_second_line_of_panels(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure)
    )
    envs = [f"env-{number}" for number in range(4)]
    curve = {"rows": [100, 200], "return_mean": [1.0, 3.0]}
    timed, old = [{"curve": {**curve, "seconds": [7.0, 9.0]}}], [{"curve": curve}]
    draw_curves({"a": {envs[0]: timed, envs[1]: old, envs[3]: timed}}, envs, Path("curves.png"))
    panels = drawn[0].axes
    assert [panel.get_title() for panel in panels] == [
        *envs[:3], *envs[:3], envs[3], "", "", envs[3], "", "",
    ]  # fmt: skip
    assert [line.get_xdata().tolist() for line in panels[0].lines] == [[100, 200]]
    assert [line.get_xdata().tolist() for line in panels[3].lines] == [[7.0, 9.0]]
    assert "seconds" in panels[3].get_xlabel()
    assert [panel.texts[0].get_text() for panel in (panels[2], panels[4])] == [
        "not run", "no seconds recorded",
    ]  # fmt: skip
    assert [line.get_xdata().tolist() for line in panels[9].lines] == [[7.0, 9.0]]


def timed_results(seconds, returns, population=1):
    """Return the result of one seed on Breakout, whose published score is 10."""
    rows = list(range(len(returns)))
    curve = {"rows": rows, "return_mean": returns, "seconds": seconds}
    return {"curve": curve, "population": population}


def test_the_wall_clock_to_the_published_score_is_the_median_over_the_seeds():
    seeds = [timed_results([5.0, 10.0, 15.0], [None, 10.0, 2.0], 3),
             timed_results([5.0, 10.0, 15.0], [1.0, 9.9, 30.0], 3),
             timed_results([5.0, 10.0, 15.0], [1.0, 9.9, 9.9], 3)]  # fmt: skip
    game = "Breakout-MinAtar"
    alone = [timed_results([4.0, 8.0], [0.0, 1.0])]
    rows = {"dqn": {game: seeds}, "pqn": {game: alone}, "old": {game: [{"curve": {}}]}, "c51": {}}
    text = wall_clock(rows, ["CartPole-v1", game])
    assert text.splitlines()[-1] == (
        f"| {game} | 10 | 15 s (2 of 3) | not reached (0 of 1) | not recorded | not recorded |"
    )
    assert "Seeds trained together share their seconds" in text
    assert "(3 seeds at a time)" in text
    assert "share their seconds" not in wall_clock({"pqn": {game: alone}}, [game])
    assert wall_clock({"dqn": {"CartPole-v1": seeds}}, ["CartPole-v1"]) == ""
    assert wall_clock({"old": {game: [{"curve": {}}]}}, [game]) == ""


def test_every_game_of_minatar_has_a_published_score():
    assert set(PUBLISHED) == set(GAMES)


def test_the_report_has_the_wall_clock_to_the_published_score(fake):
    assert study(envs=("Breakout-MinAtar",), seeds=21) == 0
    text = Path("study/report.md").read_text()
    # Seeds have half their number as their first return: 20 reaches 10 after 5 s, 10 to 19 later.
    assert "## Wall-clock to the published score" in text
    assert "| Breakout-MinAtar | 10 | 10 s (11 of 21) |" in text
    assert "(21 seeds at a time)" in text


def test_the_report_is_written_after_each_run(fake):
    reports = []

    def read_report(config, loggers):
        file = Path("study/report.md")
        reports.append(file.read_text() if file.exists() else "")

    fake.before = read_report
    envs = ("CartPole-v1", "Acrobot-v1", "Catch-bsuite")
    assert study(seeds=1, envs=envs) == 0
    assert len(reports) == len(envs)
    assert reports[0] == ""
    assert [text.count("not run") for text in reports[1:]] == [2 * count for count in (2, 1)], (
        reports
    )


def test_a_report_that_cannot_be_written_does_not_stop_a_study(fake, capsys):
    Path("study/report.md").mkdir(parents=True)
    assert study(seeds=1, envs=("CartPole-v1", "Acrobot-v1")) == 2
    assert len(lines()) == len(fake.made) == 2
    assert "error: report: out='study/report.md': must be writable" in capsys.readouterr().err


def test_a_report_that_cannot_be_written_is_one_clear_line(recorded, capsys):
    Path("study/report.md").unlink()
    Path("study/report.md").mkdir()
    assert __main__.main(["--report", "--out", "study"]) == 2
    assert "out='study/report.md': must be writable" in capsys.readouterr().err
