"""Memory and communication of a run: predicted without running, and compared with free memory."""

from functools import partial

import jax
import pytest

from jaxdqn.cli.explain import explain
from jaxdqn.parallel.build import make_mapped_trainer
from jaxdqn.parallel.learners import learner_keys
from jaxdqn.run.device_memory import bytes_per_device, bytes_sent, working_replay_bytes
from jaxdqn.run.setup import check_memory_of_run
from tests.toys import noisy, tiny

CASES = {
    "one device": ({}, 1, 2),
    "four devices": ({"devices": 4}, 4, 8),
    # 2 learners on each of 2 devices; by map one of them is held twice.
    "population by map": ({"num_seeds": 4, "devices": 2, "population": "map"}, 3, 5),
    "population by default": ({"num_seeds": 4, "devices": 2}, 3, 5),
    "population by vmap": ({"num_seeds": 4, "devices": 2, "population": "vmap"}, 2, 4),
    "no replay in checkpoints": ({"devices": 4, "replay_in_checkpoint": False}, 4, 4),
}


@pytest.mark.parametrize(("overrides", "alone", "saved"), CASES.values(), ids=CASES)
def test_the_host_must_have_room_for_the_replay_of_all_its_devices(
    overrides, alone, saved, monkeypatch
):
    """``alone`` and ``saved`` count the replay of one device, without and with checkpoints."""
    config = tiny(**overrides)
    trainer = make_mapped_trainer(config, environment=noisy())
    state = jax.eval_shape(trainer.init, learner_keys(config).train)
    unit = bytes_per_device(trainer, state).replay
    for times, saves in ((alone, False), (saved, True)):
        monkeypatch.setattr(
            "jaxdqn.replay.memory.free_bytes", lambda device=None, n=times: n * unit
        )
        check_memory_of_run(config, trainer, state, saves=saves)
        monkeypatch.setattr(
            "jaxdqn.replay.memory.free_bytes", lambda device=None, n=times: n * unit - 1
        )
        with pytest.raises(ValueError, match="replay_capacity: "):
            check_memory_of_run(config, trainer, state, saves=saves)


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
    needed = 2 * working_replay_bytes(config, taken)
    assert needed == 3 * taken.replay
    monkeypatch.setattr("jaxdqn.cli.explain.free_bytes", lambda device: needed)
    text = explained(config)
    assert f"{needed:,}, shared by the 2 devices\n" in text
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
