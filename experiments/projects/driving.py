"""Distributed training for highway driving: ``python -m experiments.projects.driving``.

Trains the preset driving in one process, with actors on Ray and one learner, and with several
learners. It writes the table of ``docs/projects/driving.md``, the learning curve and, if
highway-env is installed, a GIF of an episode. Needs EnvPool and Ray.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.projects.training import Arrangement
from jaxdqn.cli.flags import parse, run_command

PAGE = Path("docs") / "projects" / "driving.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    actors: int = 2
    """Number of actors; must divide the 16 environments of the preset."""
    learners: int = 2
    """Number of learners in the arrangement with a parameter server."""
    seed: int = 0
    """Seed of the runs."""
    rows: int | None = None
    """Budget of a run in rows; by default the budget of the preset."""
    episodes: int = 200
    """Greedy episodes per evaluation."""
    out: str = "runs/driving-project"
    """Directory of the runs. Finished runs in it are not trained again, and interrupted ones are
    resumed; both must have the same flags."""
    page: str | None = None
    """Page whose results are replaced, such as docs/projects/driving.md; by default they are only
    printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m experiments.projects.driving", description=__doc__)
    for option in ("actors", "learners", "episodes"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    from benchmarks.report import describe, stamp
    from experiments.projects.compared import comparison, train_all
    from experiments.projects.page import check_page, write_results
    from experiments.projects.training import require
    from jaxdqn.config.presets import preset

    num_envs = preset("driving").num_envs
    if num_envs % flags.actors:
        raise ValueError(f"actors={flags.actors}: must divide num_envs={num_envs}")
    page = None if flags.page is None else Path(flags.page)
    if page is not None:
        check_page(page)
    require({"envpool": "driving", "ray": "ray"})
    more = ["--seed", str(flags.seed), "--eval-episodes", str(flags.episodes)]
    more += [] if flags.rows is None else ["--total-rows", str(flags.rows)]
    runs = train_all("driving", arrangements(flags), more, Path(flags.out))
    record: dict[str, Any] = {"stamp": stamp(), "runs": runs}
    blocks = [f"Measured on {describe(record['stamp'])}.", comparison(runs, crashes=True)]
    print("\n\n".join(blocks), flush=True)
    if page is not None:
        write_results(page, record, blocks)
    images = Path(flags.out) if page is None else page.parent.parent / "images"
    print("drawn:", *draw_episode(Path(flags.out) / "0", images))


def draw_episode(run: Path, images: Path) -> list[Path]:
    """Write the learning curve, and a GIF of an episode in the original simulator.

    EnvPool's simulator does not render. Without highway-env there is no GIF.
    """
    from benchmarks.driving import ORIGINAL
    from experiments.projects.training import draw, missing

    installed = not missing(["highway_env"])
    return draw(run, images, "driving", video=installed, on=ORIGINAL)


def arrangements(flags: Flags) -> list[Arrangement]:
    """Return the arrangements that are compared."""
    actors = ("--engine", "ray", "--actors", str(flags.actors))
    server = (*actors, "--learners", str(flags.learners), "--server-mode")
    ray = ("ray",)
    return [
        Arrangement("one process", ()),
        Arrangement(f"{flags.actors} actors, 1 learner", actors, ray),
        Arrangement(
            f"{flags.actors} actors, {flags.learners} learners, synchronous", (*server, "sync"), ray
        ),
        Arrangement(
            f"{flags.actors} actors, {flags.learners} learners, asynchronous",
            (*server, "async"),
            ray,
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
