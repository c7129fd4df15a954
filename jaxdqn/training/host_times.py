"""Time that chunks with environments on the host spend in each part."""

from __future__ import annotations

from jaxdqn.backend_choices import dispatches_asynchronously


class HostTimes:
    """Seconds of the parts of chunks since the last call of ``shares``.

    The acting thread adds to all parts but ``learn``, to which the learner thread adds.

    Attributes:
      env: steps of the environments.
      act: choice of actions, and transfer of the actions to the host.
      wait: wait of the acting thread for the learner thread.
      learn: gradient steps. Only known if programs run in the thread that calls them; otherwise a
        call returns before its program ends.
      total: duration of the chunks.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Set all parts to zero."""
        self.env = self.act = self.wait = self.learn = self.total = 0.0

    def shares(self) -> dict[str, float]:
        """Return the share of each part in the duration of the chunks, and clear the parts.

        The shares of the acting thread add up to at most 1; the remainder is storing rows and
        calling programs. ``learn_share`` is that of the other thread.
        """
        if self.total == 0.0:
            return {}
        names = ("env", "act", "wait", *(() if dispatches_asynchronously() else ("learn",)))
        shares = {f"{name}_share": getattr(self, name) / self.total for name in names}
        self.clear()
        return shares
