"""Clock for tests of timing."""


class Clock:
    """Clock that only the timed work advances."""

    def __init__(self):
        self.now = 0.0
        self.order = []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        """Return a call that advances the clock and records its name."""

        def run():
            self.order.append(name)
            self.now += seconds() if callable(seconds) else seconds

        return run
