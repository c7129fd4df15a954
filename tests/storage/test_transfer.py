"""Runs that start from the parameters of another run."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.communication.outer import OuterState, WithOuter
from jaxdqn.config.config import Config
from jaxdqn.config.presets import preset
from jaxdqn.networks.spectral import spectral_norm
from jaxdqn.run.runner import run
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.storage.transfer import Transfer, read_transfer, transferred
from jaxdqn.training.trainer import make_trainer
from jaxdqn.types import AgentState, NormalizedParams
from tests.run.test_run import compiled_once, finished, small  # noqa: F401 (fixtures)
from tests.toys import noisy, tiny


def state_of(num_actions, **overrides):
    trainer = make_trainer(tiny(**overrides), environment=noisy(num_actions=num_actions))
    return jax.jit(trainer.init)(jax.random.key(7))


def test_both_networks_start_from_the_other_run_and_a_head_of_another_shape_is_new(finished):  # noqa: F811
    state = state_of(3)
    transfer = read_transfer(str(finished.out), jax.eval_shape(lambda: state.agent.params))
    assert set(transfer.taken) | set(transfer.new) == {
        f"params/{layer}/{leaf}"
        for layer in ("head/Dense_0", "torso/Dense_0")
        for leaf in ("bias", "kernel")
    }
    assert transfer.new == {
        "params/head/Dense_0/bias": "float32[2] there, float32[3]",
        "params/head/Dense_0/kernel": "float32[16, 2] there, float32[16, 3]",
    }
    after = transferred(state, transfer).agent
    best = finished.result.best_params["params"]["torso"]["Dense_0"]["kernel"]
    for before, now in (
        (state.agent.params, after.params),
        (state.agent.params, after.target_params),
    ):
        np.testing.assert_array_equal(now["params"]["torso"]["Dense_0"]["kernel"], best)
        np.testing.assert_array_equal(
            now["params"]["head"]["Dense_0"]["kernel"],
            before["params"]["head"]["Dense_0"]["kernel"],
        )
    with pytest.raises(ValueError, match=r"init_from=.*must have parameters with the names and"):
        read_transfer(str(finished.out), {"other": np.zeros(2)})


def test_an_outer_optimiser_steps_from_the_transferred_parameters():
    params = {"network": jnp.float32([1.0, 2.0]), "mean": jnp.float32(5.0)}
    normalised = NormalizedParams({"w": params["network"]}, params["mean"])
    outer = OuterState({"w": jnp.zeros(2)}, {"w": jnp.ones(2)})
    agent = AgentState(normalised, normalised, WithOuter(jnp.int32(3), outer), jnp.int32(0))
    state = SimpleNamespace(agent=agent, _replace=lambda agent: agent)
    transfer = Transfer("run", {"network/w": np.float32([3.0, 4.0])}, {})
    after = transferred(state, transfer)
    np.testing.assert_array_equal(after.params.network["w"], [3.0, 4.0])
    np.testing.assert_array_equal(after.target_params.network["w"], [3.0, 4.0])
    np.testing.assert_array_equal(after.opt_state.outer.anchor["w"], [3.0, 4.0])
    np.testing.assert_array_equal(after.opt_state.outer.momentum["w"], [1.0, 1.0])
    assert int(after.opt_state.inner) == 3


def test_a_kernel_from_a_run_without_spectral_norm_gets_its_power_vector(monkeypatch):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 4, 6)).astype(np.float32)
    monkeypatch.setattr("jaxdqn.storage.transfer._read", lambda source: {"conv/kernel": kernel})
    target = {"conv": {"kernel": np.zeros_like(kernel), "power_vector": np.zeros(6, np.float32)}}
    transfer = read_transfer("run", target)
    assert transfer.new == {}
    norm = spectral_norm(jnp.asarray(kernel), jnp.asarray(transfer.taken["conv/power_vector"]))
    assert float(norm) == pytest.approx(np.linalg.norm(kernel.reshape(36, 6), 2), rel=1e-5)


def test_a_run_says_what_it_took_and_learns_from_there(finished, tmp_path):  # noqa: F811
    config = small(init_from=str(finished.out), learning_rate=1e-30)
    result = run(config, out=tmp_path / "two", environment=noisy())
    jax.tree.map(
        np.testing.assert_array_equal, result.state.agent.params, finished.result.best_params
    )
    (event,) = [
        each for each in read_lines(tmp_path / "two" / "events.jsonl")
        if each["event"] == "initialised"
    ]  # fmt: skip
    assert event["new"] == {}
    assert len(event["taken"]) == 4
    assert event["message"].startswith(f"starts from {finished.out}: took params/head")
    with pytest.raises(ValueError, match="init_from='nowhere': must be a run directory"):
        run(small(init_from="nowhere"), environment=noisy())


@pytest.mark.slow
def test_a_start_from_cart_pole_pays_with_a_pole_twice_as_long(tmp_path):
    source = tmp_path / "source"
    run(preset("cartpole", seed=100), out=source)

    def returns(seed: int, init_from: str | None) -> tuple[float, float]:
        """Return the mean return of all evaluations, and of the first."""
        config = preset("cartpole", seed=seed)
        values = {
            **{name: getattr(config, name) for name in vars(config)},
            "env_args": ("length=1.0",),
            "total_rows": 20_000,
            "eval_every": 4_000,
            "stop_when": "never",
            "init_from": init_from,
        }
        out = tmp_path / f"{seed}-{init_from is None}"
        run(Config(**values), out=out)
        means = [
            each["return_mean"] for each in read_lines(out / "evaluations.jsonl")
            if each["purpose"] == "evaluate"
        ]  # fmt: skip
        return float(np.mean(means)), means[0]

    pairs = [(returns(seed, str(source)), returns(seed, None)) for seed in range(5)]
    gains = [started[0] - scratch[0] for started, scratch in pairs]
    print("mean return over 20 000 rows, with and without init_from:", pairs)
    assert np.mean(gains) > 2 * np.std(gains, ddof=1) / np.sqrt(5)
    assert np.mean(gains) > 30
