"""Memory and communication of a run: predicted without running, and compared with free memory."""

from functools import partial

import jax
import pytest

from jaxdqn.cli.explain import explain
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.run.device_memory import (
    bytes_in_use,
    bytes_per_device,
    bytes_sent,
    devices_that_count_memory,
    working_bytes,
)
from jaxdqn.run.memory_needs import check_memory_of_run, memory_needs
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from tests.toys import noisy, quick_runs, tiny

CASES = {
    "one device": ({}, 1, 2),
    "four devices": ({"devices": 4}, 4, 8),
    # 2 learners on each of 2 devices; map holds one of them twice.
    "population by map": ({"num_seeds": 4, "devices": 2, "population": "map"}, 3, 5),
    "population by default": ({"num_seeds": 4, "devices": 2}, 3, 5),
    "population by vmap": ({"num_seeds": 4, "devices": 2, "population": "vmap"}, 2, 4),
    "no replay in checkpoints": ({"devices": 4, "replay_in_checkpoint": False}, 4, 4),
}


def traced(config, **parts):
    """Return the trainer and the shapes of its state."""
    trainer = make_mapped_trainer(config, environment=noisy(), **parts)
    return trainer, jax.eval_shape(trainer.init, learner_keys(config).train)


def free(monkeypatch, size):
    monkeypatch.setattr("jaxdqn.replay.memory.free_bytes", lambda device=None: size)


@pytest.mark.parametrize(("overrides", "alone", "saved"), CASES.values(), ids=CASES)
def test_the_host_must_have_room_for_all_its_devices(overrides, alone, saved, monkeypatch):
    """``alone`` and ``saved``: bytes without and with checkpoints, in replays of one device."""
    config = tiny(**overrides, eval_episodes=1, replay_capacity=4096)
    trainer, state = traced(config)
    unit = bytes_per_device(trainer, state).replay
    for times, saves in ((alone, False), (saved, True)):
        needs = memory_needs(config, trainer, state, saves=saves)
        (replay,) = [need.bytes for need in needs if need.argument == "replay_capacity"]
        assert replay * config.devices == times * unit
        total = sum(need.bytes for need in needs) * config.devices
        free(monkeypatch, total)
        check_memory_of_run(config, trainer, state, saves=saves)
        free(monkeypatch, total - 1)
        with pytest.raises(ValueError, match=r"replay_capacity: the replay.* of .* bytes on each"):
            check_memory_of_run(config, trainer, state, saves=saves)


def test_a_network_that_is_too_large_is_rejected_before_anything_is_allocated(monkeypatch):
    config = tiny(hidden_sizes=(1 << 15, 1 << 15))
    trainer, state = traced(config)
    parameters = 4 * (2 * 2**15 + 2**15 + 2**30 + 2**15 + 2 * 2**15 + 2)
    networks = memory_needs(config, trainer, state, saves=False)[0].bytes
    # Parameters, target, two moments and a gradient, and counts.
    assert 0 <= networks - 5 * parameters < 64
    free(monkeypatch, networks)
    monkeypatch.setattr(
        "jaxdqn.run.program_cache.compile_programs", lambda *_: pytest.fail("compiled")
    )
    message = r"hidden_sizes: the parameters, target network, optimiser and gradient take 21,4"
    with pytest.raises(ValueError, match=message):
        run(config, environment=noisy())


def test_an_evaluation_that_is_too_large_is_rejected(monkeypatch):
    config = tiny(eval_episodes=10**8)
    trainer, state = traced(config)
    evaluation = memory_needs(config, trainer, state, saves=False)[-1]
    # An activation is [N, 16] float32; an environment has at least its observation [2].
    assert evaluation.bytes > 10**8 * 4 * (16 + 2)
    free(monkeypatch, evaluation.bytes)
    with pytest.raises(ValueError, match=r"eval_episodes: an evaluation takes .* of .* bytes on"):
        check_memory_of_run(config, trainer, state, saves=False)
    with pytest.raises(ValueError, match="eval_episodes: an evaluation takes"):
        run(config, environment=noisy())


def test_learners_that_run_in_turn_are_evaluated_in_turn():
    for population, learners in (("map", 1), ("vmap", 2)):
        many = tiny(num_seeds=4, devices=2, population=population, eval_episodes=1000)
        one = tiny(eval_episodes=1000)
        sizes = [memory_needs(each, *traced(each), saves=False)[-1].bytes for each in (many, one)]
        assert sizes[0] == learners * sizes[1] > 0


def test_a_pqn_run_is_checked_too(monkeypatch):
    config = tiny(algorithm="pqn", rollout_length=8, minibatches=4, hidden_sizes=(1 << 12,) * 2,
                  batch_size=128, replay_capacity=32_768, warmup_rows=1024)  # fmt: skip
    trainer, state = traced(config)
    free(monkeypatch, 1 << 20)
    with pytest.raises(ValueError, match="hidden_sizes: the parameters"):
        check_memory_of_run(config, trainer, state, saves=True)


@pytest.fixture
def explained(monkeypatch):
    """Explain runs of an environment that traces quickly."""
    make = partial(make_mapped_trainer, environment=noisy())
    monkeypatch.setattr("jaxdqn.cli.explain.make_mapped_trainer", make)
    return lambda config: explain(config, "toy")


def test_explain_counts_the_memory_that_devices_share(explained, monkeypatch):
    config = tiny(num_seeds=4, devices=2)
    trainer = make_mapped_trainer(config, environment=noisy())
    taken = bytes_per_device(trainer, jax.eval_shape(trainer.init, learner_keys(config).train))
    assert 2 * working_bytes(config, taken.replay) == 3 * taken.replay
    state = jax.eval_shape(trainer.init, learner_keys(config).train)
    needed = 2 * sum(need.bytes for need in memory_needs(config, trainer, state, saves=True))
    monkeypatch.setattr("jaxdqn.cli.explain.free_bytes", lambda device: needed)
    text = explained(config)
    assert f"{needed:,}, shared by the 2 devices\n" in text
    assert f"held at once          {needed // 2:,}\n" in text
    assert f"one learner's copy    {taken.replay // 2:,}\n" in text
    monkeypatch.setattr("jaxdqn.cli.explain.free_bytes", lambda device: needed - 1)
    assert "shared by the 2 devices, too few" in explained(config)


def test_bytes_sent_count_only_replicas_of_one_learner():
    # 2*16 + 16 + 16*2 + 2 = 82 parameters; an all-reduce over 2 sends each once.
    for overrides, sent in (
        ({"devices": 2}, 4 * 82),
        ({"devices": 4}, 1.5 * 4 * 82),
        ({}, None),
        ({"num_seeds": 4, "devices": 2}, None),
    ):
        config = tiny(**overrides)
        trainer = make_mapped_trainer(config, environment=noisy())
        state = jax.eval_shape(trainer.init, learner_keys(config).train)
        assert bytes_sent(config, state) == sent


def test_explain_prints_the_bytes_that_replicas_send(explained):
    assert "sent, each step       328 by each replica\n" in explained(tiny(devices=2))
    assert "sent" not in explained(tiny())


class Device:
    """Device with some bytes in use; None if it does not count them."""

    def __init__(self, used):
        self.used = used

    def memory_stats(self):
        return None if self.used is None else {"bytes_in_use": self.used}


def test_the_memory_in_use_is_the_maximum_over_the_devices_that_count_it():
    counted = devices_that_count_memory([Device(10), Device(None), Device(30), Device(20)])
    assert len(counted) == 3
    assert bytes_in_use(counted) == 30
    assert devices_that_count_memory(jax.local_devices()) == []  # CPUs


@pytest.mark.parametrize("devices", [(), (Device(10), Device(30))])
def test_every_chunk_records_the_memory_in_use_where_devices_count_it(
    tmp_path, monkeypatch, devices
):
    monkeypatch.setattr("jaxdqn.run.loop.devices_that_count_memory", lambda local: list(devices))
    with quick_runs():
        run(tiny(eval_episodes=2), environment=noisy(), out=tmp_path / "run")
    records = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert len(records) == 4
    assert [record.get("device_bytes") for record in records] == [30 if devices else None] * 4
    assert all(("device_bytes" in record) == bool(devices) for record in records)
