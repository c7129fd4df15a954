"""Prometheus: export of the newest metric values of a run."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdqn.errors import reject
from jaxdqn.monitoring.figures import (
    TOTALS,
    Figures,
    figures_of,
    learner_figures,
    reject_missing,
)
from jaxdqn.monitoring.loggers import Logger
from jaxdqn.storage.jsonl import Record
from jaxdqn.training.diagnostics import quantile

LOOPBACK = "127.0.0.1"
QUANTILES = (0.05, 0.5, 0.95)
"""Exported quantiles of each histogram."""

_COUNTERS = (*TOTALS, "seconds", "train_seconds", "eval_seconds")
"""Metrics that only increase during a run; their names get the suffix ``_total``."""


class Address(NamedTuple):
    """Address on which the server listens."""

    host: str
    port: int


def read_address(text: str) -> Address:
    """Parse ``PORT`` or ``HOST:PORT``; without a host the address is the loopback interface.

    Raises:
        ValueError: if the text has neither form.
    """
    host, _, port = text.rpartition(":")
    if not port.isdigit() or not 0 <= int(port) < 2**16 or (":" in text and not host):
        reject("prometheus", text, "PORT or HOST:PORT, with a port from 0 to 65535")
    return Address(host.strip("[]") or LOOPBACK, int(port))


def make_prometheus_logger(address: str) -> Logger:
    """Make a logger that serves the newest metric values at ``/metrics``.

    Names are ``jaxdqn_NAME``, ``jaxdqn_evaluation_NAME`` for evaluations, and ``jaxdqn_NAME_total``
    for totals. Labels are ``run`` (the name of the run directory), ``env``, and ``learner`` for
    the values of one learner of a population.

    Args:
        address: ``PORT`` or ``HOST:PORT``; port 0 selects any free port.

    Raises:
        ValueError: if the address is invalid or in use, or prometheus-client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, start_http_server
    except ImportError:
        reject_missing("prometheus", address, "prometheus-client", "monitor")
    host, port = read_address(address)
    figures, registry = Exporter(), CollectorRegistry()
    registry.register(figures)
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except OSError as error:
        reject("prometheus", address, f"an address that can be opened: {error.strerror or error}")

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    figures.port = server.server_port
    return Logger(log=figures.log, close=close, name="prometheus logger")


class Exporter:
    """Collector for ``prometheus_client``, holding the newest values of a run."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._labels: dict[str, str] = {"run": "", "env": ""}
        self._newest: dict[str, tuple[Figures, list[Figures]]] = {}
        self.port = 0

    def log(self, kind: str, record: Record) -> None:
        """Store the values of a record; see ``Logger.log``."""
        if kind == "start":
            out = record["out"]
            name = "" if out is None else Path(out).name
            self._labels = {"run": name, "env": str(record["config"]["env"])}
        prefix = {"metrics": "jaxdqn", "evaluation": "jaxdqn_evaluation"}.get(kind)
        if prefix is None or record.get("purpose", "evaluate") != "evaluate":
            return
        figures = figures_of(record)
        if kind == "evaluation":
            for name in _COUNTERS:  # chunks report newer totals
                figures.scalars.pop(name, None)
        with self._lock:
            self._newest[prefix] = figures, learner_figures(record)

    def collect(self) -> Iterator[Any]:
        """Yield the metric families of ``prometheus_client``."""
        with self._lock:
            newest = dict(self._newest)
        for prefix, (figures, learners) in newest.items():
            yield from self._families(prefix, figures)
            yield from self._learner_families(prefix, learners)

    def _families(self, prefix: str, figures: Figures) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        labels, values = [*self._labels], [*self._labels.values()]
        for name, value in figures.scalars.items():
            counts = name in _COUNTERS
            family = (CounterMetricFamily if counts else GaugeMetricFamily)(
                f"{prefix}_{name}", f"{name} of the newest record", labels=labels
            )
            family.add_metric(values, value)
            yield family
        for name, shares in figures.histograms.items():
            family = GaugeMetricFamily(
                f"{prefix}_{name}_quantile", f"quantiles of {name}", labels=[*labels, "quantile"]
            )
            for level in QUANTILES:
                value = quantile(shares, f"{name}_histogram", level)
                if math.isfinite(value):
                    family.add_metric([*values, f"{level:g}"], value)
            yield family

    def _learner_families(self, prefix: str, learners: list[Figures]) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        names = {name: None for figures in learners for name in figures.scalars}
        for name in names:
            family = GaugeMetricFamily(
                f"{prefix}_learner_{name}",
                f"{name} of each learner",
                labels=[*self._labels, "learner"],
            )
            for index, figures in enumerate(learners):
                if name in figures.scalars:
                    labels = [*self._labels.values(), str(index)]
                    family.add_metric(labels, figures.scalars[name])
            yield family
