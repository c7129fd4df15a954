"""The training program in its form for accelerators gives the results of its form for CPUs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdqn.backend_choices import tracing_for
from jaxdqn.training.trainer import make_trainer
from tests.toys import noisy, quick_jit, tiny


def one_chunk(config, backend):
    """Return the state and the metrics after one chunk of the program for a backend."""
    with tracing_for(backend):
        trainer = make_trainer(config, environment=noisy())
        state = quick_jit(trainer.init)(jax.random.key(0))
        return quick_jit(trainer.chunk(1))(state)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"rollout_length": 2, "gradient_steps": 3},
        {"replay": "prioritized", "n_step": 3, "double": True},
    ],
)
def test_an_iteration_in_the_forms_for_a_gpu_agrees_with_that_for_a_cpu(options):
    config = tiny(**options)
    (state, metrics), (gpu_state, gpu_metrics) = (one_chunk(config, b) for b in ("cpu", "gpu"))

    def agree(path, cpu, gpu):
        assert (cpu.shape, cpu.dtype) == (gpu.shape, gpu.dtype), path
        if jnp.issubdtype(cpu.dtype, jax.dtypes.prng_key):
            cpu, gpu = jax.random.key_data(cpu), jax.random.key_data(gpu)
        np.testing.assert_allclose(gpu, cpu, rtol=2e-4, atol=1e-5, err_msg=str(path))

    jax.tree_util.tree_map_with_path(agree, (state, metrics), (gpu_state, gpu_metrics))
    assert int(metrics.gradient_steps) > 0
