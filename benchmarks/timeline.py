"""Draw a timeline with environments on the host: ``python -m benchmarks.timeline``.

The acting thread steps the environments, chooses actions and waits for the learner; the learner
thread runs the gradient steps. Every part of some iterations is drawn as a bar, and its share of
the time is printed. In this benchmark the learner thread waits for its device, so that a bar ends
when the computation ends.
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from benchmarks.host import Prolonged, host_config, name_of
from benchmarks.report import check_writable, describe, format_table, stamp
from jaxdqn.cli.backend import use_cpu_dispatch
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.config.config import Config

PARTS = ("environments", "actions", "rows", "wait for the learner", "learner")
"""Parts of an iteration in the acting thread, and the learner thread."""
_COLOURS = ("#0072B2", "#E69F00", "#999999", "#D55E00", "#009E73")
"""Colours that are distinguishable with any colour vision (Okabe and Ito 2008)."""
_WARM_UP = 64
"""Number of iterations before the first measured one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    cadence: str = "4,32,1"
    """Vector steps (K), batch size (B) and gradient steps (M) of an iteration, as K,B,M."""
    env: str = "gymnasium:CartPole-v1"
    """Environment on the host."""
    num_envs: int = 8
    """Number of environments."""
    hidden_sizes: tuple[int, ...] = (64, 64)
    """Widths of the hidden layers."""
    step_milliseconds: float = 0.0
    """Milliseconds added to every vector step, to imitate a slow simulator."""
    iterations: int = 400
    """Iterations whose shares are printed."""
    drawn: int = 8
    """Iterations in the picture, from the middle of those measured."""
    out: str = "timeline.png"
    """File of the picture."""


class Span(NamedTuple):
    """One part of one iteration, in seconds on the clock ``time.perf_counter``."""

    part: str
    start: float
    end: float


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="python -m benchmarks.timeline", description=__doc__)
    check_writable(flags.out)
    name_of(flags.cadence)
    for option in ("num_envs", "iterations", "drawn"):
        if getattr(flags, option) < 1:
            raise ValueError(f"{option}={getattr(flags, option)}: must be at least 1")
    if flags.drawn > flags.iterations:
        raise ValueError(f"drawn={flags.drawn}: must be at most iterations={flags.iterations}")
    use_cpu_dispatch(Config(), "sync")  # as jaxdqn run does by default with such environments
    recorded = {how: record(flags, how == "overlapped") for how in ("serial", "overlapped")}
    print(describe(stamp()))
    print(f"{name_of(flags.cadence)}, {flags.num_envs} environments of {flags.env}")
    rows = [
        (
            how,
            f"{1e6 * statistics.median(durations(spans)):.0f}",
            *(f"{share:.0%}" for share in shares(spans).values()),
        )
        for how, spans in recorded.items()
    ]
    print(format_table(("", "µs an iteration", *PARTS), rows))
    draw(recorded, flags.drawn, flags.out)
    print(f"picture: {flags.out}")


def record(flags: Flags, overlap: bool) -> list[list[Span]]:
    """Return the spans of each iteration of a run on the host, ordered by their start.

    Raises:
        ValueError: if the environment is not on the host.
    """
    import jax

    from jaxdqn import envs
    from jaxdqn.training.hyper import hyper_from
    from jaxdqn.training.vector_programs import jit_vector_programs
    from jaxdqn.training.vector_runner import VectorRunner
    from jaxdqn.training.vector_trainer import make_vector_trainer

    length, batch_size, gradient_steps = map(int, flags.cadence.split(","))
    config = host_config(
        flags.num_envs, length, batch_size, gradient_steps, env=flags.env,
        hidden_sizes=flags.hidden_sizes, overlap=overlap,
    )  # fmt: skip
    host = envs.configured_host_environment(config)
    if host is None:
        raise ValueError(f"env={flags.env!r}: must be an environment on the host")
    clock, make, seconds = Clock(), host.make, flags.step_milliseconds / 1_000

    def timed(num_envs: int) -> Any:
        made = make(num_envs)
        made = Prolonged(made, seconds) if seconds else made
        return Timed(made, clock)

    class TimedRunner(VectorRunner):
        """Runner that records when its parts start and end."""

        def _act(self, *arguments: Any) -> Any:
            clock.acting_starts()
            played = super()._act(*arguments)
            clock.acting_ends()
            return played

        def _learn(self, *arguments: Any) -> Any:
            start = time.perf_counter()
            learnt = jax.block_until_ready(super()._learn(*arguments))
            clock.learnt(start)
            return learnt

    trainer = make_vector_trainer(config, host._replace(make=timed))
    runner = TimedRunner(trainer, jit_vector_programs(trainer))
    try:
        state = runner.init(jax.random.key(0), hyper_from(config))
        state, _ = runner.chunk(state, _WARM_UP)
        clock.iterations.clear()
        # Run one iteration more, because the wait of an iteration ends when the next one starts.
        runner.chunk(state, flags.iterations + 1)
    finally:
        runner.close()
    return [sorted(spans, key=lambda span: span.start) for spans in clock.iterations[:-1]]


class Clock:
    """Record of the parts of the iterations; the acting thread opens each iteration."""

    def __init__(self) -> None:
        self.iterations: list[list[Span]] = []
        self._since = 0.0
        self._acted = 0.0

    def acting_starts(self) -> None:
        """Open an iteration; the time since the last acting ended was spent waiting."""
        now = time.perf_counter()
        if self.iterations:
            self.iterations[-1].append(Span("wait for the learner", self._acted, now))
        self.iterations.append([])
        self._since = now

    def stepped(self, start: float) -> None:
        """Record a vector step that began at ``start``, and before it the choice of actions."""
        now = time.perf_counter()
        choice, step = Span("actions", self._since, start), Span("environments", start, now)
        self.iterations[-1] += [choice, step]
        self._since = now

    def acting_ends(self) -> None:
        """Record that the rows of the iteration were stacked."""
        self._acted = time.perf_counter()
        self.iterations[-1].append(Span("rows", self._since, self._acted))

    def learnt(self, start: float) -> None:
        """Record gradient steps in the learner thread that began at ``start``."""
        self.iterations[-1].append(Span("learner", start, time.perf_counter()))


class Timed:
    """Environments whose vector steps are recorded."""

    def __init__(self, envs: Any, clock: Clock) -> None:
        self._envs, self._clock = envs, clock
        self.reset, self.close = envs.reset, envs.close

    def step(self, actions: Any) -> Any:
        """Step the environments."""
        start = time.perf_counter()
        timestep = self._envs.step(actions)
        self._clock.stepped(start)
        return timestep


def durations(iterations: Sequence[Sequence[Span]]) -> list[float]:
    """Return the duration of each iteration of the acting thread, in seconds."""
    acting = [[span for span in spans if span.part != "learner"] for spans in iterations]
    return [spans[-1].end - spans[0].start for spans in acting]


def shares(iterations: Sequence[Sequence[Span]]) -> dict[str, float]:
    """Return the share of each part in the duration of all iterations.

    The shares of the acting thread add up to 1. The share of the learner thread is its utilisation.
    """
    total = sum(durations(iterations))
    spans = [span for each in iterations for span in each]
    return {
        part: sum(span.end - span.start for span in spans if span.part == part) / total
        for part in PARTS
    }


def draw(recorded: dict[str, list[list[Span]]], drawn: int, file: str) -> None:
    """Draw iterations from the middle, with one panel for each mode."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(10, 1.6 + 1.5 * len(recorded)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(recorded), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (how, iterations) in zip(panels, recorded.items(), strict=True):
        first = (len(iterations) - drawn) // 2
        chosen = iterations[first : first + drawn]
        zero = chosen[0][0].start
        for span in (span for spans in chosen for span in spans):
            axes.barh(
                int(span.part == "learner"), 1e3 * (span.end - span.start),
                left=1e3 * (span.start - zero), height=0.8, color=_COLOURS[PARTS.index(span.part)],
            )  # fmt: skip
        axes.set_yticks([0, 1], ["acting thread", "learner thread"])
        axes.set_title(f"{how}, {drawn} iterations", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("milliseconds")
    handles = [
        Patch(color=colour, label=part) for part, colour in zip(PARTS, _COLOURS, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(PARTS), frameon=False)
    figure.savefig(file, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
