"""Settings of every test: eight CPU devices, and JAX at its strictest."""

import jax
from hypothesis import settings

# Before the first array: the devices are counted when the backend starts.
jax.config.update("jax_num_cpu_devices", 8)

# An implicit widening or broadcast is a mistake until it is written down.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every machine; no deadline, since the first one compiles.
settings.register_profile("jaxdqn", derandomize=True, database=None, deadline=None)
settings.load_profile("jaxdqn")
