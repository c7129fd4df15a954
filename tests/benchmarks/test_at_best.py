"""Times to solve and to hold of other libraries: judged as runs of jaxdqn are."""

import contextlib
import importlib
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from benchmarks.versus import __main__, at_best
from benchmarks.versus.at_best import at_best_table, learner_result, train_peer
from benchmarks.versus.drivers import pure_jax_at_best, rllib_at_best
from benchmarks.versus.drivers.at_best import Learner


def evaluation(index, mean, fresh=None, rows=5_000, spent=False):
    return {
        "rows": rows * (index + 1), "seconds": float(index + 1), "train_seconds": 0.5,
        "return_mean": mean, "fresh_mean": fresh, "spent": spent,
    }  # fmt: skip


def evaluations(means, confirmations, **options):
    """Return evaluations; ``confirmations`` has the fresh return by index."""
    return [evaluation(i, mean, confirmations.get(i), **options) for i, mean in enumerate(means)]


def test_a_peer_is_solved_by_a_confirmed_evaluation_and_holds_after_ten():
    result = learner_result(3, evaluations([9.0, 480.0, 20.0] + [500.0] * 12, {1: 490.0}))
    assert (result["seed"], result["seconds_to_solve"]) == (3, 2.0)
    assert (result["seconds_to_hold"], result["rows_to_hold"]) == (13.0, 65_000)
    assert result["learning_stability"] == 1.0


def test_a_refuted_evaluation_neither_solves_nor_counts():
    means = [500.0] * 10
    result = learner_result(0, evaluations(means, {0: 400.0, 1: 500.0}))
    assert (result["seconds_to_solve"], result["seconds_to_hold"]) == (2.0, None)
    assert learner_result(0, evaluations(means, {0: 475.0}))["seconds_to_hold"] == 10.0


def test_evaluations_of_a_peer_that_are_too_close_count_once():
    result = learner_result(0, evaluations([500.0] * 20, {0: 500.0}, rows=2_500))
    assert result["rows_to_hold"] == 19 * 2_500


class FakePeer:
    """Peer that answers from a list."""

    def __init__(self, answers):
        self.answers, self.requests = list(answers), []

    def send(self, request):
        self.requests.append(request)

    def measure(self):
        return self.answers.pop(0) if self.answers else {"missing": "it ended"}

    def receive(self):
        return {"compile_seconds": 1.0, "device_kind": "cpu"}

    def close(self):
        self.requests.append("closed")


def test_a_peer_is_trained_for_its_complete_budget():
    peer = FakePeer([evaluation(0, 10.0), evaluation(1, 20.0, spent=True), evaluation(2, 30.0)])
    result = train_peer(peer, 7)
    assert peer.requests == ["seed 7"]
    assert (result["rows"], result["eval_return_mean"]) == (10_000, 20.0)
    assert train_peer(FakePeer([evaluation(0, 10.0)]), 7) == {"missing": "it ended"}


def test_libraries_take_turns_and_one_that_ends_keeps_its_results(monkeypatch):
    turns = []

    def ours(seed, *arguments):
        turns.append(("jaxdqn", seed))
        return learner_result(seed, evaluations([500.0] * 10, {0: 500.0}))

    peer = FakePeer([evaluation(0, 12.0, spent=True)])
    monkeypatch.setattr(at_best, "train_jaxdqn", ours)
    monkeypatch.setattr(at_best, "start_peer", lambda *arguments: peer)
    records = at_best.compare_at_best(
        [("sb3", "")], 3, "python", None, report=turns.append, device_kind="cpu"
    )
    assert [turn for turn in turns if isinstance(turn, tuple)] == [("jaxdqn", s) for s in range(3)]
    assert [len(record["seeds"]) for record in records] == [3, 1]
    assert records[1]["missing"] == "it ended"
    assert peer.requests == ["seed 0", "seed 1", "closed"]
    ours_row, theirs_row = at_best_table(records).splitlines()[-2:]
    assert "1.00, 3 of 3" in ours_row
    assert "10.00, 3 of 3" in ours_row
    assert "> 1, 0 of 1" in theirs_row


def test_a_jax_library_on_another_device_is_not_trained(monkeypatch):
    def ours(seed, *arguments):
        return learner_result(seed, evaluations([500.0] * 10, {0: 500.0}))

    monkeypatch.setattr(at_best, "train_jaxdqn", ours)
    monkeypatch.setattr(
        at_best, "start_peer", lambda *arguments: FakePeer([evaluation(0, 12.0, spent=True)])
    )
    peers = [("purejaxrl", "dqn.py"), ("sb3", "")]
    records = at_best.compare_at_best(
        peers, 1, "python", None, report=lambda line: None, device_kind="a GPU"
    )
    assert [record["device_kind"] for record in records] == ["a GPU", "cpu", "cpu"]
    assert records[1]["missing"] == "device_kind='cpu': must be 'a GPU', the device of jaxdqn"
    assert [len(record["seeds"]) for record in records] == [1, 0, 1], "sb3 chooses the CPU itself"


def test_a_learner_of_rllib_ends_when_it_has_solved_or_its_seconds_are_spent():
    means = [480.0, 20.0, 490.0, 500.0]
    peer = FakePeer(evaluations(means, {0: 400.0, 2: 480.0}))
    result = train_peer(peer, 1, until_solved=True)
    assert (result["seconds_to_solve"], result["seconds"]) == (3.0, 3.0)
    peer = FakePeer(evaluations([20.0] * 9, {}))
    result = train_peer(peer, 1, max_seconds=2.5, until_solved=True)
    assert (result["seconds_to_solve"], result["seconds"]) == (None, 3.0)


def test_rllib_is_compared_with_jaxdqn_on_ray_until_both_have_solved(monkeypatch):
    asked, told = [], []

    def ours(seed, options=(), max_seconds=None):
        asked.append((options, max_seconds))
        return learner_result(seed, evaluations([500.0] * 10, {0: 500.0}))

    peer = FakePeer(evaluations([20.0] * 9, {}))
    monkeypatch.setattr(at_best, "train_jaxdqn", ours)
    monkeypatch.setattr(at_best, "start_peer", lambda *arguments: peer)
    records = at_best.compare_at_best(
        [("rllib", "")],
        1,
        "python",
        None,
        report=told.append,
        max_seconds=4.0,
        device_kind="cpu",
    )
    assert [record["name"] for record in records] == ["jaxdqn", "jaxdqn-ray", "rllib"]
    assert asked == [((), None), (at_best.RAY_OPTIONS, 4.0)]
    assert told[2].startswith("rllib, seed 0: not solved within 4 s")
    assert "> 4, 0 of 1" in at_best_table(records).splitlines()[-1]


def test_the_work_on_ray_is_that_of_rllib():
    from benchmarks.versus.jaxdqn_driver import _config
    from jaxdqn.cli.run import config_from, read_flags

    flags = read_flags(["cartpole", *at_best.RAY_OPTIONS])[1]
    assert (flags.engine, flags.actors) == ("ray", "2")
    config, wanted = config_from(flags), _config("matched", "stop")
    names = ("num_envs", "rollout_length", "gradient_steps", "batch_size", "n_step", "double",
             "hidden_sizes", "layer_norm", "learning_rate", "learning_rate_schedule", "loss",
             "target_period", "epsilon_schedule", "epsilon_end", "replay_capacity", "gamma",
             "optimizer", "clip_norm")  # fmt: skip
    for name in names:
        assert getattr(config, name) == getattr(wanted, name), name
    assert (config.warmup_rows, config.replay) == (1_000, "prioritized")
    assert (config.solve_return, config.eval_episodes) == (at_best.SOLVE_RETURN, 100)


class FakeAlgorithm:
    """An algorithm of RLlib that samples 1,200 environment steps in each iteration."""

    def __init__(self):
        self.rows, self.state = 0, None
        self.learner_group = self

    def train(self):
        self.rows += 1_200
        return {"num_env_steps_sampled_lifetime": float(self.rows)}

    def get_weights(self):
        return {"default_policy": {"of": self.rows}}

    def get_module(self):
        return self

    def set_state(self, state):
        self.state = state

    def forward_inference(self, batch):
        assert self.state == {"of": self.rows}
        return {"actions": FakeTensor(batch["obs"].values)}


class FakeTensor:
    def __init__(self, values):
        self.values = values

    def numpy(self):
        return self.values


class FakeTorch:
    as_tensor = FakeTensor

    @staticmethod
    def no_grad():
        return contextlib.nullcontext()


def test_rllib_is_evaluated_greedily_with_the_newest_parameters():
    algorithm, played = FakeAlgorithm(), []

    def play(greedy, key):
        played.append((greedy([0, 1]), key))
        return 321.0

    learner = rllib_at_best.rllib_learner(algorithm, FakeTorch, play)
    assert [learner.advance(), learner.advance()] == [6_000, 12_000]
    assert learner.evaluate(7) == 321.0
    assert played == [([0, 1], 7)]
    assert learner.rows == 500_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--peer", "cleanrl=x.py"],
            "must be one of purejaxrl, purejaxql, sb3, rllib with at_best",
        ),
        (["--peer", "sb3", "--max-seconds", "9"], "must be left out without at_best=True and the"),
        (["--peer", "rllib", "--max-seconds", "0"], "max_seconds=0.0: must be above 0"),
        (["--peer", "sb3", "--seeds", "0"], "seeds=0: must be at least 1"),
    ],
)
def test_an_invalid_request_is_one_line(arguments, message, capsys):
    assert __main__.main(["--at-best", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture(scope="module")
def driver():
    """The driver of the peers, as its interpreter loads it."""
    path = Path(at_best.__file__).with_name("peers_at_best.py")
    spec = importlib.util.spec_from_file_location("peers_at_best", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("peers", None)


def test_every_peer_has_a_driver(driver):
    for module, function, _ in driver.PEERS.values():
        assert callable(getattr(importlib.import_module(f"benchmarks.versus.drivers.{module}"),
                                function))  # fmt: skip


def train(key):
    """Train as a peer does: an outer scan over updates, an inner one over steps."""

    def update(carry, _):
        carry, _ = jax.lax.scan(lambda total, _: (total + 1, None), carry, None, 3)
        return carry, carry

    carry, metrics = jax.lax.scan(update, jnp.int32(2), None, 4)
    return {"runner_state": carry, "metrics": metrics}


def test_updates_in_blocks_are_those_of_the_whole_run():
    scan = jax.lax.scan
    step, carry = pure_jax_at_best.outer_scan(train, None)
    assert jax.lax.scan is scan
    for _ in range(4):
        carry, _ = step(carry, None)
    assert int(carry) == int(train(None)["runner_state"]) == 14


class FakeLearner:
    """A learner whose returns are given, and whose budget is two evaluations."""

    def __init__(self, means):
        self.means, self.rows, self.keys = list(means), 0, []

    def learner(self):
        def advance():
            self.rows += 6_000
            return self.rows

        def evaluate(key):
            self.keys.append(key)
            return self.means.pop(0)

        return Learner(advance, evaluate, 12_000)


def test_the_driver_confirms_until_solved_and_reports_the_end(driver, monkeypatch):
    fake = FakeLearner([480.0, 400.0, 490.0, 491.0, 480.0])
    monkeypatch.setattr(sys, "stdin", iter(["seed 5\n", "go\n", "go\n", "go\n"]))
    sent = []
    channel = type("Channel", (), {"send": lambda self, **message: sent.append(message)})()
    driver.serve(channel, lambda seed: fake.learner(), 475.0)
    assert [message["return_mean"] for message in sent] == [480.0, 490.0, 480.0]
    assert [message["fresh_mean"] for message in sent] == [400.0, 491.0, None]
    assert [message["spent"] for message in sent] == [False, True, True]
    assert all(0 <= message["train_seconds"] <= message["seconds"] for message in sent)
    # Confirmations play other episodes than evaluations, and other ones each time.
    assert len({fake.keys[0], fake.keys[1], fake.keys[3]}) == 3
    assert fake.keys[0] == fake.keys[2] == fake.keys[4]
