"""Loggers for TensorBoard, Prometheus and Weights & Biases: what their readers read."""

import contextlib
import importlib.util
import json
import math
import re
import socket
import struct
import subprocess
import sys
import time
import types
import urllib.request
from shutil import which
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from jaxdqn.actor_learner.chunk_metrics import ChunkTotals
from jaxdqn.actor_learner.time_use import TimeUse
from jaxdqn.config.config import to_dict
from jaxdqn.monitoring.figures import figures_of, learner_figures
from jaxdqn.monitoring.loggers import LoggerGroup
from jaxdqn.monitoring.records import chunk_record
from jaxdqn.training.diagnostics import ABS_TD_EDGES, Q_EDGES
from jaxdqn.training.host_times import HostTimes
from tests.docs.pages import ROOT
from tests.toys import tiny

MONITORING = ROOT / "docs" / "monitoring"


def shares(edges, index):
    one = [0.0] * (len(edges) + 1)
    one[index] = 1.0
    return one


def chunk(env_steps, learners=None):
    record = {
        "chunk": 1, "rows": env_steps + 4, "env_steps": env_steps, "gradient_steps": 10,
        "seconds": 2.0, "train_seconds": 1.5, "eval_seconds": 0.25, "return_mean": 12.5,
        "length_mean": 7.0, "loss": math.nan, "grad_norm": 3.0, "grad_norm_clipped": 1.0,
        "q_mean": 0.5, "q_max": 0.75, "epsilon": 0.1, "skipped": 0, "episodes": 3,
        "env_steps_per_second": 100.0, "gradient_steps_per_second": 10.0,
        "abs_td_mean": 0.4, "target_gap": 0.01, "sample_age": 20.0, "replay_fill": 0.5,
        "weight_mean": 0.9, "effective_sample_size": 7.0, "device_bytes": 1024,
        "abs_td_histogram": shares(ABS_TD_EDGES, 17), "q_histogram": shares(Q_EDGES, 0),
    }  # fmt: skip
    return record if learners is None else {**record, "learners": learners}


def host_chunk():
    """Return the record of a chunk with environments on the host."""
    times = HostTimes()
    times.env, times.act, times.wait, times.learn, times.total = 1.0, 2.0, 0.5, 3.0, 4.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxdqn.training.host_times.dispatches_asynchronously", lambda: False)
        return {**chunk(100), **times.shares()}


def ray_chunk(learners=0):
    """Return the record of a chunk on Ray; with learners, on a parameter server."""
    totals = ChunkTotals(2, TimeUse(), learners, shard_seconds=[0.0])
    for learner in range(learners):
        totals.add_gradient(learner, 3, SimpleNamespace(seconds=0.5))
    totals.add_queues(blocks=1, gradients=1, adds=2)
    state = SimpleNamespace(agent=SimpleNamespace(params={"w": np.ones(2)}))
    rows = {"lost": 0, "duplicated": 0}
    workers = SimpleNamespace(restarts=1, present=2, rows_of_process=rows, shard_seconds=[0.5])
    return {**chunk(100), **chunk_record(totals.metrics(state, workers), 2.0)}


def evaluation(env_steps, learners=None):
    record = {"purpose": "evaluate", "rows": env_steps + 4, "env_steps": env_steps,
              "gradient_steps": 10, "seconds": 2.0, "return_mean": 20.0, "episodes": 4}  # fmt: skip
    return record if learners is None else {**record, "learners": learners}


def start(out, **overrides):
    return {"config": to_dict(tiny(**overrides)), "out": None if out is None else str(out)}


def test_figures_are_the_numbers_and_histograms_of_a_record():
    figures = figures_of({**chunk(8), "leader": None, "purpose": "evaluate", "flag": True})
    assert figures.scalars["return_mean"] == 12.5
    assert math.isnan(figures.scalars["loss"])
    assert not {"leader", "purpose", "flag", "abs_td_histogram"} & set(figures.scalars)
    assert set(figures.histograms) == {"abs_td", "q"}
    both = learner_figures({"learners": {"loss": [1.0, 2.0], "q_histogram": [[1.0], [0.0]]}})
    assert [figures.scalars["loss"] for figures in both] == [1.0, 2.0]
    assert both[0].histograms == {"q": [1.0]}
    assert [figures.scalars for figures in learner_figures({"learners": [3.0, 4.0]})] == [
        {"return_mean": 3.0},
        {"return_mean": 4.0},
    ]
    assert learner_figures(chunk(8)) == []


def events_in(folder):
    """Return the events of a folder, read from the records of its files."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def values_in(folder):
    return [(event.step, value) for event in events_in(folder) for value in event.summary.value]


@pytest.fixture
def tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    from jaxdqn.monitoring.tensorboard import make_tensorboard_logger

    def write(*records, **overrides):
        logger = make_tensorboard_logger()
        logger.log("start", start(tmp_path, **overrides))
        for kind, record in records:
            logger.log(kind, record)
        logger.close()
        return tmp_path / "tensorboard"

    return write


def test_tensorboard_files_hold_scalars_histograms_and_hyper_parameters(tensorboard):
    folder = tensorboard(
        ("event", {"event": "started", "message": "compiling"}),
        ("metrics", chunk(100)), ("evaluation", evaluation(100)), ("metrics", chunk(200)),
    )  # fmt: skip
    values = values_in(folder)
    scalars = {(step, value.tag): value.simple_value for step, value in values
               if value.WhichOneof("value") == "simple_value"}  # fmt: skip
    assert scalars[100, "training/return_mean"] == 12.5
    assert scalars[100, "evaluation/return_mean"] == 20.0
    assert (200, "training/grad_norm_clipped") in scalars
    (histogram, _) = (value.histo for _, value in values if value.tag == "training/abs_td")
    assert list(histogram.bucket) == [0.0] * 17 + [1.0] + [0.0] * (len(ABS_TD_EDGES) - 17)
    assert histogram.bucket_limit[16] == pytest.approx(1.0)
    assert 1.0 <= histogram.min < histogram.max < 2.0
    assert any(value.tag.startswith("events") for _, value in values)
    plugins = [value.metadata.plugin_data.plugin_name for _, value in values]
    assert plugins.count("hparams") == 3
    # A run that is resumed at step 100 hides what was written from there on.
    assert [event.step for event in events_in(folder) if event.session_log.status == 1] == [100]


def test_each_learner_of_a_population_is_a_run_in_tensorboard(tensorboard):
    folder = tensorboard(
        ("metrics", chunk(100, {"return_mean": [1.0, 2.0]})),
        ("evaluation", evaluation(100, [3.0, 4.0])),
        num_seeds=2,
    )
    for index in (0, 1):
        found = {
            value.tag: value.simple_value for _, value in values_in(folder / f"learner-{index}")
        }
        assert found["training/return_mean"] == 1.0 + index
        assert found["evaluation/return_mean"] == 3.0 + index


@pytest.mark.skipif(not importlib.util.find_spec("tensorboard"), reason="needs tensorboard")
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_itself_reads_the_events(tensorboard):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tensorboard(("metrics", chunk(100)), ("metrics", chunk(200)))
    reader = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    reader.Reload()
    assert [(event.step, event.value) for event in reader.Scalars("training/return_mean")] == [
        (100, 12.5),
        (200, 12.5),
    ]
    (first, _) = reader.Histograms("training/q")
    assert first.histogram_value.num == 1.0
    assert "_hparams_/experiment" in reader.PluginTagToContent("hparams")


@pytest.fixture
def scrape():
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    from jaxdqn.monitoring.prometheus import make_prometheus_logger

    loggers = []

    def read(*records, **overrides):
        logger = make_prometheus_logger("0")
        loggers.append(logger)
        port = logger.log.__self__.port
        logger.log("start", start("runs/mine", **overrides))
        for kind, record in records:
            logger.log(kind, record)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, *(sample.labels.get(name) for name in ("learner", "quantile"))): sample
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    yield read
    for logger in loggers:
        logger.close()


POPULATION = [("metrics", chunk(100, {"return_mean": [1.0, 2.0], "loss": [0.1, 0.2]})),
              ("evaluation", evaluation(100, [3.0, 4.0]))]  # fmt: skip


def test_prometheus_serves_the_newest_figures(scrape):
    samples = scrape(("metrics", chunk(50)), *POPULATION, num_seeds=2)
    assert samples["jaxdqn_env_steps_total", None, None].value == 100
    sample = samples["jaxdqn_return_mean", None, None]
    assert (sample.value, sample.labels["run"], sample.labels["env"]) == (
        12.5,
        "mine",
        "CartPole-v1",
    )
    assert math.isnan(samples["jaxdqn_loss", None, None].value)
    assert samples["jaxdqn_evaluation_return_mean", None, None].value == 20.0
    assert samples["jaxdqn_learner_loss", "1", None].value == 0.2
    assert samples["jaxdqn_evaluation_learner_return_mean", "0", None].value == 3.0
    # The 17th bin of |TD| ends at 10^(1/4).
    assert samples["jaxdqn_abs_td_quantile", None, "0.5"].value == pytest.approx(10**0.25)


def test_the_dashboard_uses_the_exported_names_and_no_others(scrape):
    runs = [[("metrics", record)] for record in (host_chunk(), ray_chunk(), ray_chunk(learners=2))]
    exported = {name for records in [POPULATION, *runs]
                for name, *_ in scrape(*records, num_seeds=2)}  # fmt: skip
    dashboard = (MONITORING / "dashboard.json").read_text()
    used = set(re.findall(r"jaxdqn_\w+", dashboard))
    assert used <= exported, used - exported
    titles = [panel["title"] for panel in json.loads(dashboard)["panels"]]
    assert len(set(titles)) == len(titles) > 10
    # Every figure is in a panel, but for those of single learners, actors and shards, and counts.
    single = re.compile(r"jaxdqn_(evaluation_)?learner_[a-z]|jaxdqn_(learner|actor|shard)_\d")
    unused = {name for name in exported - used if not single.match(name) and "eval" not in name}
    assert unused <= {"jaxdqn_chunk", "jaxdqn_episodes", "jaxdqn_seconds_total"}
    for name in ("parameter_age", "gradient_staleness", "learner_rows_wait_share",
                 "server_gradients_wait_share", "blocks_queue_length", "env_share"):  # fmt: skip
        assert f"jaxdqn_{name}" in used


@pytest.mark.parametrize("learners", [0, 2])
def test_a_record_of_asynchronous_actors_reaches_every_logger(
    scrape, tensorboard, monkeypatch, tmp_path, learners
):
    record = ray_chunk(learners)
    names = {"parameter_age", "actor_busy_share", "actor_1_rows_per_second", "blocks_queue_length"}
    if learners:
        names |= {"gradient_staleness", "server_gradients_wait_share", "learner_1_busy_share"}
        assert record["gradient_staleness_max"] == 3.0
    samples = scrape(("metrics", record))
    values = values_in(tensorboard(("metrics", record)))
    drawn = {value.tag: value.simple_value for _, value in values}
    run = logged_by_wandb(monkeypatch, tmp_path, [("metrics", record)])[0]
    for name in names:
        assert samples[f"jaxdqn_{name}", None, None].value == record[name]
        assert drawn[f"training/{name}"] == pytest.approx(record[name])
        assert run.logged[0][f"training/{name}"] == record[name]


def test_the_compose_files_name_each_other_and_one_port():
    compose = yaml.safe_load((MONITORING / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service["volumes"]:
            assert (MONITORING / volume.partition(":")[0]).exists()
    config = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert target == "127.0.0.1:9400"
    assert "--prometheus 9400" in (ROOT / "docs" / "monitoring.md").read_text()
    source = yaml.safe_load((MONITORING / "provisioning/datasources/prometheus.yaml").read_text())[
        "datasources"
    ][0]
    listen = compose["services"]["prometheus"]["command"][1].partition("=")[2]
    assert source["url"] == f"http://{listen}"
    assert f'"uid": "{source["uid"]}"' in (MONITORING / "dashboard.json").read_text()


def docker_compose():
    """Return the command of docker compose, as its own program or a plugin of docker; or None."""
    if which("docker-compose"):
        return ["docker-compose"]
    plugin = ["docker", "compose"]
    if (
        which("docker")
        and subprocess.run([*plugin, "version"], capture_output=True).returncode == 0
    ):
        return plugin
    return None


@pytest.mark.slow
def test_docker_compose_accepts_the_compose_file():
    command = docker_compose()
    if command is None:
        pytest.skip("needs docker-compose, or docker with its plugin compose")
    ended = subprocess.run(
        [*command, "-f", str(MONITORING / "compose.yaml"), "config"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert set(yaml.safe_load(ended.stdout)["services"]) == {"prometheus", "grafana"}


@pytest.mark.parametrize("address", ["", "http", "70000", ":9400", "host:"])
def test_an_invalid_address_is_rejected(address):
    from jaxdqn.monitoring.prometheus import make_prometheus_logger

    with pytest.raises(ValueError, match=f"^prometheus='{address}': must be PORT or HOST:PORT"):
        make_prometheus_logger(address)


def test_a_port_in_use_is_rejected_and_the_default_host_is_the_loopback():
    from jaxdqn.monitoring.prometheus import make_prometheus_logger, read_address

    assert read_address("9400") == ("127.0.0.1", 9400)
    assert read_address("0.0.0.0:9400") == ("0.0.0.0", 9400)
    assert read_address("[::1]:9400") == ("::1", 9400)
    logger = make_prometheus_logger("0")
    port = logger.log.__self__.port
    with pytest.raises(ValueError, match=f"^prometheus='{port}': must be an address that can be"):
        make_prometheus_logger(str(port))
    logger.close()


class FakeRun:
    def __init__(self):
        self.logged, self.summary, self.finished, self.metrics = [], {}, 0, []

    def define_metric(self, *arguments, **options):
        self.metrics.append((arguments, options))

    def log(self, values):
        self.logged.append(values)

    def finish(self):
        self.finished += 1


def logged_by_wandb(monkeypatch, tmp_path, records):
    """Return what a fake of wandb has received, and the settings of its start."""
    fake, run, given = types.ModuleType("wandb"), FakeRun(), {}
    fake.init = lambda **settings: given.update(settings) or run
    fake.Histogram = lambda np_histogram: np_histogram
    monkeypatch.setitem(sys.modules, "wandb", fake)
    from jaxdqn.monitoring.wandb import make_wandb_logger

    logger = make_wandb_logger(mode="offline")
    group = LoggerGroup([logger])
    group.log("start", start(tmp_path / "mine"))
    for kind, record in records:
        group.log(kind, record)
    group.close()
    return run, given


def test_wandb_gets_configuration_figures_and_summary(monkeypatch, tmp_path):
    summary = {"solved": True, "env": "x", "best_eval_return_mean": 3.0}
    records = [*POPULATION, ("summary", summary)]
    run, given = logged_by_wandb(monkeypatch, tmp_path, records)
    assert (given["project"], given["name"], given["mode"]) == ("jaxdqn", "mine", "offline")
    assert given["config"]["env"] == "CartPole-v1"
    metrics, judged = run.logged
    assert (metrics["env_steps"], metrics["training/return_mean"]) == (100, 12.5)
    assert metrics["learner-1/training/loss"] == 0.2
    assert "training/loss" not in metrics  # NaN
    counts, edges = metrics["training/abs_td"]
    assert len(edges) == len(counts) + 1
    assert np.all(np.diff(edges) > 0)
    assert judged["evaluation/return_mean"] == 20.0
    assert run.summary == {"solved": True, "best_eval_return_mean": 3.0}
    assert run.finished == 1


def test_wandb_gets_the_last_of_many_short_chunks(monkeypatch, tmp_path):
    fake, run = types.ModuleType("wandb"), FakeRun()
    fake.init, fake.Histogram = lambda **settings: run, lambda np_histogram: np_histogram
    monkeypatch.setitem(sys.modules, "wandb", fake)
    from jaxdqn.monitoring.wandb import make_wandb_logger

    logger = make_wandb_logger()
    logger.log("start", start(tmp_path))
    for env_steps in range(100, 1_100, 100):
        logger.log("metrics", chunk(env_steps))
    logger.close()
    sent = [values["env_steps"] for values in run.logged]
    assert sent[0] == 100
    assert sent[-1] == 1_000
    assert len(sent) < 10


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("wandb"), reason="needs wandb")
@pytest.mark.filterwarnings("ignore")
def test_wandb_itself_writes_an_offline_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    from jaxdqn.monitoring.wandb import make_wandb_logger

    (tmp_path / "mine").mkdir()
    logger = make_wandb_logger()
    logger.log("start", start(tmp_path / "mine"))
    for kind, record in POPULATION:
        logger.log(kind, record)
    logger.close()
    (file,) = (tmp_path / "mine" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 1_000


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("tensorboard", "tensorboardX", "monitor"), ("wandb", "wandb", "wandb"),
     ("prometheus", "prometheus_client", "monitor")],
)  # fmt: skip
def test_a_missing_package_names_the_extra(module, package, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    make = getattr(importlib.import_module(f"jaxdqn.monitoring.{module}"), f"make_{module}_logger")
    with pytest.raises(ValueError, match=rf"^{module}=.*pip install \"jaxdqn\[{extra}\]\"$"):
        make(*["9400"] * (module == "prometheus"))


@pytest.mark.slow
@pytest.mark.skipif(which("prometheus") is None, reason="needs the server prometheus")
def test_a_prometheus_server_scrapes_a_run(tmp_path):
    pytest.importorskip("prometheus_client")
    from jaxdqn.monitoring.prometheus import make_prometheus_logger

    logger, port = make_prometheus_logger("0"), free_port()
    target = f"127.0.0.1:{logger.log.__self__.port}"
    logger.log("start", start("runs/mine"))
    logger.log("metrics", chunk(100))
    config = (MONITORING / "prometheus.yml").read_text()
    (tmp_path / "prometheus.yml").write_text(
        config.replace("127.0.0.1:9400", target).replace("5s", "1s")
    )
    server = subprocess.Popen(
        [which("prometheus"), f"--config.file={tmp_path / 'prometheus.yml'}",
         f"--web.listen-address=127.0.0.1:{port}", f"--storage.tsdb.path={tmp_path / 'data'}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        results = []
        deadline = time.monotonic() + 60
        while not results and time.monotonic() < deadline:
            time.sleep(0.5)
            with contextlib.suppress(OSError):
                query = f"http://127.0.0.1:{port}/api/v1/query?query=jaxdqn_return_mean"
                with urllib.request.urlopen(query, timeout=5) as answer:
                    results = json.load(answer)["data"]["result"]
        (result,) = results
        assert result["metric"]["run"] == "mine"
        assert float(result["value"][1]) == 12.5
    finally:
        server.terminate()
        server.wait(30)
        logger.close()


def free_port():
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]
