"""One game on many devices and many actors: ``python -m experiments.projects.devices``.

Trains one game in several arrangements: on one device; data-parallel on several devices; with
actors on Ray and one learner; and with several learners whose gradients are averaged. It writes the
table of ``docs/projects/devices.md``. The arrangements with Ray are skipped if it is not installed.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.projects.training import Arrangement
from jaxdqn.cli.flags import parse, run_command

PAGE = Path("docs") / "projects" / "devices.md"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    preset: str = "breakout"
    """Preset of the game; its algorithm must be DQN."""
    devices: int = 2
    """Number of devices, and of learners in the arrangement with a parameter server."""
    actors: int = 2
    """Number of actors on Ray."""
    virtual: bool = True
    """Create virtual CPU devices, to try several devices on one machine; --no-virtual uses
    accelerators."""
    seed: int = 0
    """Seed of the runs."""
    rows: int | None = None
    """Budget of a run in rows; by default the budget of the preset."""
    out: str = "runs/devices"
    """Directory of the runs. Finished runs in it are not trained again, and interrupted ones are
    resumed; both must have the same flags."""
    page: str | None = None
    """Page whose results are replaced, such as docs/projects/devices.md; by default they are only
    printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m experiments.projects.devices", description=__doc__)
    for option in ("actors", "devices"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    from benchmarks.report import describe, stamp
    from experiments.projects.compared import comparison, train_all
    from experiments.projects.page import check_page, write_results
    from experiments.projects.training import check_drawable, draw
    from jaxdqn.config.presets import preset

    config = preset(flags.preset)
    if config.algorithm != "dqn":
        raise ValueError(f"preset={flags.preset!r}: must be of algorithm='dqn'")
    for option in ("actors", "devices"):
        if config.num_envs % getattr(flags, option):
            raise ValueError(f"{option}={getattr(flags, option)}: must divide "
                             f"num_envs={config.num_envs}")  # fmt: skip
    page = None if flags.page is None else Path(flags.page)
    if page is not None:
        check_page(page)
    check_drawable(config)
    # All arrangements use prioritised replay, because Ray needs it and results must be comparable.
    more = ["--replay", "prioritized", "--seed", str(flags.seed)]
    more += [] if flags.rows is None else ["--total-rows", str(flags.rows)]
    runs = train_all(flags.preset, arrangements(flags), more, Path(flags.out))
    record: dict[str, Any] = {"stamp": stamp(), "runs": runs}
    blocks = [f"Measured on {describe(record['stamp'])}.", comparison(runs)]
    print("\n\n".join(blocks), flush=True)
    if page is not None:
        write_results(page, record, blocks)
    images = Path(flags.out) if page is None else page.parent.parent / "images"
    draw(Path(flags.out) / "0", images, "devices")


def arrangements(flags: Flags) -> list[Arrangement]:
    """Return the arrangements that are compared."""
    count = str(flags.devices)
    virtual = ("--virtual-devices", count) if flags.virtual else ()
    placed = () if flags.virtual else ("--gpus-per-learner", "1")
    devices = ("--devices", count, *virtual)
    actors = ("--engine", "ray", "--actors", str(flags.actors))
    server = (*actors, "--learners", count, "--server-mode", "sync", *placed)
    return [
        Arrangement("1 device", ()),
        Arrangement(f"{flags.devices} devices, data-parallel", devices),
        Arrangement(f"{flags.actors} actors, 1 learner", actors, ("ray",)),
        Arrangement(
            f"{flags.actors} actors, {flags.devices} learners, synchronous", server, ("ray",)
        ),
    ]


if __name__ == "__main__":
    sys.exit(main())
