"""A game of 84x84 frames on one accelerator: ``python -m experiments.projects.frames``.

Trains the game with several algorithms, measures the gain of each acceleration, draws the curve and
a video, and writes the tables of ``docs/projects/frames.md``.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxdqn.cli.flags import parse, run_command

PAGE = Path("docs") / "projects" / "frames.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    env: str = "pixels:bat-and-ball"
    """Game with frames: pixels:bat-and-ball, or an Atari game on the host, such as ale:pong."""
    presets: tuple[str, ...] = ("fast", "dqn", "pqn")
    """Algorithms to train for the complete budget; an empty list trains none."""
    seed: int = 0
    """Seed of the runs."""
    rows: int | None = None
    """Budget of a run in rows; by default the budget of the preset."""
    rounds: int = 5
    """Measurements of each speed; 0 measures none."""
    seconds: float = 2.0
    """Approximate minimum duration of one measurement."""
    iterations: int = 16
    """Iterations in one call of a compiled scan."""
    out: str = "runs/frames"
    """Directory of the runs. Finished runs in it are not trained again, and interrupted ones are
    resumed; both must have the same flags."""
    page: str | None = None
    """Page whose results are replaced, such as docs/projects/frames.md; by default they are only
    printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m experiments.projects.frames", description=__doc__)
    for option, least in (("rounds", 0), ("iterations", 1)):
        if getattr(flags, option) < least:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least {least}")
    from benchmarks.report import describe, stamp
    from experiments.projects.page import check_page, write_results
    from experiments.projects.training import check_drawable, draw
    from jaxdqn.config.presets import preset

    page = None if flags.page is None else Path(flags.page)
    if page is not None:
        check_page(page)
    for name in flags.presets:  # an error before anything is trained
        check_drawable(preset(name, env=flags.env))
    runs = {name: _train(flags, name) for name in flags.presets}
    speeds = measure(flags)
    record: dict[str, Any] = {"stamp": stamp(), "env": flags.env, "runs": runs, "speeds": speeds}
    blocks = [f"Measured on {describe(record['stamp'])}.", runs_table(runs), speeds_table(speeds)]
    print("\n\n".join(blocks), flush=True)
    if page is not None:
        write_results(page, record, blocks)
    if runs:
        images = Path(flags.out) if page is None else page.parent.parent / "images"
        files = draw(Path(flags.out) / next(iter(runs)), images, "frames")
        print("drawn:", *files)


def _train(flags: Flags, name: str) -> dict[str, Any]:
    from experiments.projects.training import train

    budget = [] if flags.rows is None else ["--total-rows", str(flags.rows)]
    options = ["--env", flags.env, "--seed", str(flags.seed), *budget]
    return train(name, options, Path(flags.out) / name)


def ladder(env: str) -> dict[str, Any]:
    """Return the configurations whose speeds are compared, by name.

    All have the same number of rows per gradient step as the preset. With one environment, the
    rows of an iteration are collected one after another.
    """
    from jaxdqn.config.config import replace
    from jaxdqn.config.presets import preset

    many = preset("fast", env=env)
    rows = many.rows_per_iteration
    one = replace(many, num_envs=1, rollout_length=rows)
    return {
        "Python loop, 1 environment": one,
        "scanned loop, 1 environment": one,
        f"scanned loop, {many.num_envs} environments": many,
    }


def measure(flags: Flags) -> list[dict[str, Any]]:
    """Measure rows/s of each step of the ladder, alternating; none for games on the host.

    Returns:
        for each, ``name``, ``rows_per_second`` (median, minimum, maximum) and ``speed_up``, the
        ratio of the medians to the first.
    """
    from benchmarks.timing import alternate, spread
    from jaxdqn.config.host_envs import is_host_env

    if flags.rounds == 0 or is_host_env(flags.env):
        return []
    cases = _cases(flags)
    times = alternate(cases, rounds=flags.rounds, seconds=flags.seconds)
    medians = {name: spread([1 / each for each in times[name]]) for name in cases}
    first = next(iter(medians.values())).median
    return [
        {"name": name, "rows_per_second": list(found), "speed_up": found.median / first}
        for name, found in medians.items()
    ]


def _cases(flags: Flags) -> dict[str, Any]:
    """Compile the ladder; the unit of work is a row."""
    import jax

    from benchmarks.timing import Case, compile_timed
    from benchmarks.workloads import carried, prepare_learning
    from jaxdqn.training.trainer import make_trainer

    cases = {}
    for name, config in ladder(flags.env).items():
        work = flags.iterations * config.rows_per_iteration
        if not name.startswith("Python"):
            cases[name] = prepare_learning(config, flags.iterations).case._replace(work=work)
            continue
        trainer = make_trainer(config)
        state = jax.jit(trainer.init)(jax.random.key(flags.seed))
        step = carried(compile_timed(trainer.step, state, donate=(0,))[0], state)

        def loop(step: Any = step) -> float:
            return sum(float(step()[1].loss) for _ in range(flags.iterations))

        cases[name] = Case(loop, work)
    return cases


def runs_table(runs: dict[str, dict[str, Any]]) -> str:
    """Return the table of the trained algorithms."""
    from benchmarks.report import short
    from experiments.projects.page import table

    def number(value: Any) -> str | None:
        return None if value is None else short(value)

    header = ("algorithm", "return at the end", "solved after s", "rows", "training s", "rows/s")
    return table(header, [
        (f"`{name}`", number(run["eval_return_mean"]),
         number(run["seconds_to_solve"]) if run["solved"] else "not solved",
         f"{run['rows']:,}", number(run["train_seconds"]),
         number(run["rows"] / run["train_seconds"]))
        for name, run in runs.items()
    ] or [("`fast`", *[None] * 5)])  # fmt: skip


def speeds_table(speeds: list[dict[str, Any]]) -> str:
    """Return the table of the ladder."""
    from benchmarks.timing import Interval
    from experiments.projects.page import table

    header = ("training loop", "rows/s: median (minimum-maximum)", "times the first")
    return table(header, [
        (each["name"], str(Interval(*each["rows_per_second"])), f"{each['speed_up']:.2f}")
        for each in speeds
    ] or [("Python loop, 1 environment", None, None)])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
