"""Host side of a run. ``run`` is imported when it is first used."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxdqn.run.runner import RunResult, run

__all__ = ["RunResult", "run"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jaxdqn.run import runner

    return getattr(runner, name)
