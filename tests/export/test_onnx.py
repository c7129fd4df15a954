"""Policies as ONNX, run in a process without JAX. The converter takes seconds to import."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdqn
from jaxdqn.cli.export import report
from jaxdqn.export import onnx
from jaxdqn.export.fold import folded
from jaxdqn.export.serialized import flatten
from tests.export.test_serialized import (
    RUN_ALONE,
    actions_of_run,
    by_hand,
    inputs,
    policy_of,
)
from tests.run.test_run import compiled_once, finished  # noqa: F401 (fixtures)
from tests.toys import masked, noisy

WITHOUT_JAX = RUN_ALONE.replace('BLOCKED = ("jaxdqn",', 'BLOCKED = ("jax", "jaxlib", "jaxdqn",')


def test_a_folded_function_computes_the_same_with_its_constants_folded():
    def function(x):
        steps = jnp.linspace(0, 1, 3, dtype=jnp.float32)
        chosen = jax.lax.platform_dependent(x, cpu=lambda x: 2 * x, cuda=lambda x: 3 * x)
        return {"y": jax.nn.softmax(chosen) * steps}

    x = np.float32([1, 2, 3])
    simple = folded(function, jax.ShapeDtypeStruct((3,), np.float32))
    np.testing.assert_allclose(simple(x)["y"], function(x)["y"], rtol=1e-6)
    text = str(jax.make_jaxpr(simple)(x))
    assert "jit" not in text
    assert "platform_index" not in text
    assert "iota" not in text


def test_the_extra_is_named_where_the_converter_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    with pytest.raises(
        ValueError, match=r'the extra onnx and the converter, pip install "jaxdqn\[onnx\]"'
    ):
        jaxdqn.export_policy(tmp_path, tmp_path / "x", format="onnx")
    with pytest.raises(ValueError, match="format='tflite': must be one of stablehlo, onnx"):
        jaxdqn.export_policy(tmp_path, tmp_path / "x", format="tflite")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnx_policies_take_the_actions_of_the_run_without_jax(finished, tmp_path):  # noqa: F811
    pytest.importorskip("jax2onnx")
    plain = tmp_path / "plain"
    jaxdqn.export_policy(finished.out, plain, "last", format="onnx", environment=noisy())
    obs = np.random.default_rng(1).uniform(-9, 9, (2, 5000, 2)).astype(np.float32)
    np.savez(plain / "inputs.npz", obs=obs, first=np.zeros(obs.shape[:2], bool))
    cases = {plain: actions_of_run(finished.out, obs)}
    recurrent = {"recurrent": "gru", "recurrent_size": 8, "warmup_rows": 100}
    for name, environment, options in (
        ("carry", masked(), recurrent),
        ("stack", noisy(), {"frame_stack": 3}),
        ("rainbow", noisy(), {"loss": "categorical", "dueling": True, "noisy": True}),
        ("implicit", noisy(), {"loss": "implicit_quantile"}),
        ("pictures", None, {"env": "Breakout-MinAtar"}),
    ):  # fmt: skip
        policy, _ = policy_of(environment, **options)
        onnx.write_onnx(tmp_path / name, policy, flatten(policy), {})
        data = inputs(policy.spec, 20, 500)
        np.savez(tmp_path / name / "inputs.npz", **data)
        cases[tmp_path / name] = by_hand(policy, data)
    command = [sys.executable, "-c", WITHOUT_JAX, *map(str, cases)]
    subprocess.run(command, check=True, cwd=tmp_path)
    for directory, expected in cases.items():
        assert len(np.unique(expected)) > 1
        actions = np.load(directory / "actions.npy")
        assert actions.shape == expected.shape
        assert actions.size == 10_000
        assert (actions == expected).mean() >= 0.999, directory.name


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_int8_takes_three_tenths_of_the_bytes_of_the_model(tmp_path):
    pytest.importorskip("jax2onnx")
    policy, _ = policy_of(noisy(), hidden_sizes=(256, 256))
    sizes = {}
    for dtype in ("float32", "bfloat16", "int8"):
        directory, flat = tmp_path / dtype, flatten(policy, dtype)
        written = onnx.write_onnx(directory, policy, flat, {"weight_bytes": flat.quantized.bytes})
        sizes[dtype] = (directory / onnx.MODEL).stat().st_size
        assert written == {"model_bytes": sizes[dtype]}
        about = json.loads((directory / "policy.json").read_text())
        assert about["model_bytes"] == sizes[dtype] >= about["weight_bytes"]
    assert sizes["bfloat16"] <= 0.55 * sizes["float32"]
    assert sizes["int8"] <= 0.30 * sizes["float32"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_size_of_a_quantised_model_is_reported(finished, tmp_path):  # noqa: F811
    pytest.importorskip("jax2onnx")
    out = tmp_path / "int8"
    record = jaxdqn.export_policy(
        finished.out, out, format="onnx", quantize="int8", episodes=4, environment=noisy()
    )
    size = (out / onnx.MODEL).stat().st_size
    assert record["model_bytes"] == json.loads((out / "policy.json").read_text())["model_bytes"]
    assert f"{size:,} bytes of policy.onnx" in report(record)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_network_that_cannot_be_converted_is_named_with_the_reason(tmp_path):
    pytest.importorskip("jax2onnx")
    policy, _ = policy_of(noisy())

    def act(key, params, carry, obs, *rest):
        order = jax.pure_callback(lambda x: x, jax.ShapeDtypeStruct(obs.shape, obs.dtype), obs)
        return policy.agent.act(key, params, carry, order, *rest)

    calling = policy._replace(agent=policy.agent._replace(act=act))
    with pytest.raises(ValueError, match=r"must be 'stablehlo' for this network.*callback"):
        onnx.write_onnx(tmp_path / "x", calling, flatten(calling), {})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_model_with_other_actions_is_rejected(tmp_path):
    pytest.importorskip("jax2onnx")
    policy, _ = policy_of(noisy())
    negative = policy._replace(params=jax.tree.map(lambda leaf: -leaf, policy.params))
    model = onnx.convert(flatten(negative), policy.spec)
    with pytest.raises(ValueError, match="of random observations only"):
        onnx._check_actions(model, flatten(policy), policy.spec)
