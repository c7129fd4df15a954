"""Threads, virtual devices and memory that a command sets before JAX is used."""

import os

import jax
import pytest

from jaxdqn.cli import backend
from jaxdqn.config.config import Config, replace
from jaxdqn.config.presets import preset
from tests.cli.test_cli import python


def test_a_fraction_of_the_memory_is_set_under_the_name_that_xla_reads(monkeypatch):
    monkeypatch.setenv("XLA_CLIENT_MEM_FRACTION", "0.9")
    # XLA would reject the new name if this former one were set too.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    backend.set_up_devices(None, None)
    assert os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    backend.set_up_devices(None, 0.2)
    assert os.environ["XLA_CLIENT_MEM_FRACTION"] == "0.2"
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in os.environ


@pytest.mark.parametrize(
    ("virtual", "fraction", "message"),
    [
        (0, None, "virtual_devices=0: must be at least 1"),
        (None, 0.0, "memory_fraction=0.0: must be above 0 and at most 1"),
        (None, 1.5, "memory_fraction=1.5: must be above 0 and at most 1"),
        (None, float("nan"), "memory_fraction=nan: must be above 0 and at most 1"),
    ],
)
def test_devices_that_cannot_be_set_up_are_rejected(monkeypatch, virtual, fraction, message):
    monkeypatch.delenv("XLA_CLIENT_MEM_FRACTION", raising=False)
    with pytest.raises(ValueError, match=message):
        backend.set_up_devices(virtual, fraction)
    assert "XLA_CLIENT_MEM_FRACTION" not in os.environ


_ASYNC = "jax_cpu_enable_async_dispatch"


@pytest.mark.parametrize(
    ("fields", "dispatch", "by_name", "changed"),
    [
        ({"env": "gymnasium:CartPole-v1"}, "auto", True, {_ASYNC: False}),
        ({"env": "gymnasium:CartPole-v1"}, "auto", False, {}),
        ({"env": "gymnasium:CartPole-v1", "devices": 2}, "auto", True, {}),
        ({"env": "gymnasium:CartPole-v1"}, "async", True, {_ASYNC: True}),
        ({"env": "CartPole-v1"}, "auto", True, {}),
        ({"env": "CartPole-v1"}, "sync", True, {_ASYNC: False}),
    ],
)
def test_programs_on_the_cpu_run_in_the_thread_that_calls_them(
    monkeypatch, fields, dispatch, by_name, changed
):
    updates = {}
    monkeypatch.setattr(jax.config, "update", updates.__setitem__)
    backend.use_cpu_dispatch(replace(Config(), **fields), dispatch, by_name=by_name)
    assert updates == changed


def test_virtual_devices_are_cpu_devices_in_a_real_process():
    code = (
        "from jaxdqn.cli.backend import set_up_devices\n"
        "set_up_devices(3, None)\n"
        "import jax\n"
        "print(jax.device_count(), jax.devices()[0].platform)\n"
    )
    out, err = python("-c", code).communicate(timeout=60)
    assert out == "3 cpu\n", err


@pytest.mark.parametrize(
    ("overrides", "small"),
    [
        ({}, True),
        ({"hidden_sizes": (120, 84)}, True),
        ({"hidden_sizes": (256, 256)}, False),
        ({"hidden_sizes": (64, 64), "num_envs": 2048, "replay_capacity": 204_800,
          "warmup_rows": 20_480}, False),
        ({"hidden_sizes": ()}, True),
        ({"env": "Breakout-MinAtar"}, False),
        ({"env": "Breakout-MinAtar", "network": "mlp"}, True),
        ({"network": "nature"}, False),
    ],
)  # fmt: skip
def test_small_dense_networks_get_one_thread(monkeypatch, overrides, small):
    monkeypatch.delenv("NPROC", raising=False)
    config = preset("cartpole", **overrides)
    backend.use_cpu_threads(config, None)
    assert os.environ.get("NPROC") == ("1" if small else None)
    backend.use_cpu_threads(config, 3)
    # A variable that is set already takes precedence.
    assert os.environ["NPROC"] == ("1" if small else "3")
    monkeypatch.delenv("NPROC", raising=False)
