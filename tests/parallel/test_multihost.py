"""Runs over several processes, started by the command line and connected over loopback."""

import json
import re
import signal
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxdqn.parallel import multihost
from jaxdqn.storage.checkpoint import CHECKPOINTS, steps_of
from jaxdqn.storage.directory import read_config
from jaxdqn.storage.jsonl import read_lines
from jaxdqn.storage.resume import read_state
from tests.processes import (
    ENDLESS,
    ROOT,
    SHORT,
    assert_same_run,
    await_checkpoint,
    records_of,
    wait_for,
    worker_of,
)


def test_unequal_numbers_of_devices_are_rejected_before_any_communication(monkeypatch):
    owners = (0, 0, 1, 2, 2, 2)
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(
        jax, "devices", lambda: [SimpleNamespace(process_index=owner) for owner in owners]
    )
    monkeypatch.setattr(
        multihost.multihost_utils,
        "process_allgather",
        lambda _: pytest.fail("the processes communicated"),
    )
    message = (
        "devices=6: must be equal in all processes, but there are 2 in process 0, 1 in process 1, "
        "3 in process 2; this is process 0 of 3"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        multihost.host_names()


def test_blocks_are_sent_intact_in_pieces_of_any_size():
    blocks = [np.arange(n, dtype=np.uint8) + n for n in (3, 0, 7, 1, 16)]
    sizes = [block.size for block in blocks]
    stream = np.concatenate(blocks)
    for piece in range(1, 30):
        filled = [np.zeros_like(block) for block in blocks]
        for begin in range(0, stream.size, piece):
            part = stream[begin : begin + piece]
            for number, in_block, in_piece in multihost._overlaps(sizes, begin, begin + part.size):
                filled[number][in_block] = part[in_piece]
        for actual, expected in zip(filled, blocks, strict=True):
            np.testing.assert_array_equal(actual, expected)


TRANSFER = """
import sys
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
from jaxdqn.parallel import multihost
from jaxdqn.parallel.sharded_transfer import broadcast_sharded, gather
jax.config.update("jax_num_cpu_devices", 4)
multihost.join(sys.argv[1], 2, int(sys.argv[2]))
multihost._PIECE_BYTES = 40  # so that all data are sent in many pieces
coordinator = jax.process_index() == 0
mesh = Mesh(np.asarray(jax.devices()).reshape(4, 2), ("a", "b"))
rng = np.random.default_rng(0)
odd = np.array([-0.0, np.nan, -np.inf, 1e-45], np.float32).repeat(4).reshape(4, 4)
leaves = {
    "odd floats": (odd, P("a", "b")),
    "bool": (rng.random((8, 3)) > 0.5, P(("a", "b"))),
    "bfloat16": (np.asarray(jnp.arange(8, dtype=jnp.bfloat16).reshape(4, 2)), P("a")),
    "replicated": (rng.integers(0, 99, (3, 5), np.int32), P()),
    "scalar": (np.int32(7), P()),
    "second axis": (rng.random((3, 4), np.float32), P(None, "a")),
    "empty": (np.zeros((4, 0), np.float32), P("a")),
}
values = {name: value for name, (value, _) in leaves.items()}
layouts = {name: NamedSharding(mesh, spec) for name, (_, spec) in leaves.items()}
shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), values)
made = broadcast_sharded(values if coordinator else shapes, layouts)
for name, array in made.items():
    assert array.sharding == layouts[name], name
    for shard in array.addressable_shards:
        assert np.asarray(shard.data).tobytes() == values[name][shard.index].tobytes(), name
back = gather(made)
assert (back is not None) == coordinator
for name in values if coordinator else ():
    assert back[name].tobytes() == values[name].tobytes(), name
long = "x" * 5000
assert multihost.broadcast(lambda: {"long": long, "one": 1}) == {"long": long, "one": 1}
def reject():
    assert coordinator
    raise ValueError("no")
def fail():
    raise OSError(28, "disk full", "file")
for make, kind, text in ((reject, ValueError, "no"), (fail, OSError, "disk full")):
    try:
        multihost.broadcast(make)
    except kind as error:
        assert text in str(error)
    else:
        raise AssertionError(kind)
zero = np.float32(-0.0)
received = multihost.broadcast_arrays(zero if coordinator else np.float32(1.0))
assert received.tobytes() == zero.tobytes()
assert multihost.first_stop_reason(None) is None
assert multihost.first_stop_reason(None if coordinator else "SIGTERM") == "SIGTERM"
assert multihost.first_stop_reason("SIGINT" if coordinator else "deadline") == "SIGINT"
assert len(multihost.host_names()) == 2
multihost.check_same({"seed": 0})
try:
    multihost.check_same({"seed": 0 if coordinator else 3})
except ValueError as error:
    assert not coordinator and "seed=3: must be 0, as in process 0" in str(error)
else:
    assert coordinator
print("passed")
"""


def test_arrays_and_decisions_are_sent_between_processes_unchanged(start, port):
    flags = {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    processes = [
        start(f"127.0.0.1:{port}", index, program=("-c", TRANSFER), **flags) for index in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert "passed" in output


@pytest.mark.slow
def test_two_processes_of_two_devices_equal_one_of_four_bitwise(pair, start, tmp_path):
    """Through the command line."""
    out, flags = tmp_path / "two", [*SHORT, "--total-rows", 5000, "--deterministic"]
    processes = pair(*flags, "--out", out)
    single = ["--virtual-devices", 4, "--devices", 4, "--out", tmp_path / "one"]
    processes.append(start(*flags, *single))
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert "2 processes with 4 cpu devices" in outputs[0][0]
    assert "not solved" in outputs[0][0]
    # The other process prints nothing but messages of the runtime.
    assert "evaluation" not in outputs[1][0]
    assert "cpu devices" not in outputs[1][0]
    assert json.loads((out / "summary.json").read_text())["processes"] == 2
    assert_same_run(out, tmp_path / "one")


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_at_the_same_chunk_with_a_checkpoint(pair, tmp_path):
    processes = pair(*ENDLESS, "--out", tmp_path / "run")
    await_checkpoint(tmp_path / "run", processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, _, _ = wait_for(processes)
    assert codes == [0, 0]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["interrupted"], summary["ended_by"]) == (True, "SIGTERM")
    last = read_lines(tmp_path / "run" / "metrics.jsonl")[-1]["chunk"]
    assert max(steps_of(tmp_path / "run" / CHECKPOINTS)) == last


@pytest.mark.slow
def test_a_run_killed_and_resumed_in_other_processes_equals_an_uninterrupted_run(
    pair, start, tmp_path
):
    flags = [*SHORT, "--total-rows", 30000, "--deterministic"]
    resumed, uninterrupted = tmp_path / "run", tmp_path / "uninterrupted"
    single = [*flags, "--virtual-devices", 4, "--devices", 4, "--resume", "--out"]
    processes = pair(*flags, "--out", resumed)
    await_checkpoint(resumed, processes, 4)
    worker_of(processes[0]).kill()
    wait_for(processes)
    process = start(*single, resumed)
    await_checkpoint(resumed, [process], 10)
    process.kill()
    process.communicate()
    processes = pair(*flags, "--resume", "--out", resumed)
    outputs = [process.communicate(timeout=200) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "resumes from" in outputs[0][0]
    assert "not bitwise identical" not in outputs[0][0]
    codes, lines, _ = wait_for([start(*single, uninterrupted)])
    assert codes == [0], lines
    assert_same_run(resumed, uninterrupted)


@pytest.mark.slow
def test_without_deterministic_sums_two_processes_agree_within_rounding(pair, start, tmp_path):
    # One gradient step only: from the second on, one flipped argmax separates the two runs.
    flags = [
        *SHORT, "--num-envs", 32, "--warmup-rows", 1024, "--total-rows", 1056, "--log-every", 32,
        "--eval-every", 0, "--checkpoint-every", 32,
    ]  # fmt: skip
    two, one = tmp_path / "two", tmp_path / "one"
    single = ["--virtual-devices", 4, "--devices", 4, "--out", one]
    processes = [*pair(*flags, "--out", two), start(*flags, *single)]
    codes, lines, _ = wait_for(processes)
    assert codes == [0, 0, 0], lines
    metrics = [records_of(out, "metrics.jsonl") for out in (two, one)]
    assert [[line["gradient_steps"] for line in each] for each in metrics] == [[1], [1]]
    for name, value in metrics[0][0].items():
        np.testing.assert_allclose(value, metrics[1][0][name], rtol=1e-6)
    # Adam's first step depends on little more than the sign of the gradient; its moments hold
    # the averaged gradient itself.
    states = [read_state(out, read_config(out))[0].state for out in (two, one)]
    leaves = [jax.tree.leaves((state.agent.params, state.agent.opt_state)) for state in states]
    for leaf, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=0, atol=1e-6 * np.abs(other).max())
    for leaf in leaves[0]:
        assert (np.asarray(leaf) == np.asarray(leaf)[:1]).all()  # the same in every replica


@pytest.mark.slow
def test_cartpole_is_solved_by_two_processes(pair, tmp_path):
    codes, lines, _ = wait_for(
        pair("cartpole", "--out", tmp_path / "run", XLA_FLAGS=""), within=600
    )
    assert codes == [0, 0], lines
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["solved"]
    assert (summary["processes"], summary["devices"]) == (2, 4)
