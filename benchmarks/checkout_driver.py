"""Drive one checkout of jaxdqn for ``benchmarks.two_checkouts``. Imports nothing but that jaxdqn.

``python -P checkout_driver.py CHECKOUT FIELDS ITERATIONS SECONDS`` compiles chunks of ITERATIONS
iterations of the configuration with FIELDS, a JSON object, as training does. It writes lines of
JSON: first ``{"compile_seconds": ..., "file": ...}``, the latter of the imported package, or
``{"missing": REASON}``; then, for each line ``go`` that it reads, ``{"seconds", "cpu_seconds",
"iterations"}`` of at least about SECONDS. This file is of the newer checkout, and uses only public
names that older ones have too.
"""

from __future__ import annotations

import json
import math
import sys
import time
from pathlib import Path
from typing import Any


def main(checkout: str, fields: str, iterations: str, seconds: str) -> None:
    """Compile, then answer requests until they end."""
    sys.path.insert(0, checkout)
    try:
        import jaxdqn

        file = str(Path(str(jaxdqn.__file__)).resolve())
        if not Path(file).is_relative_to(Path(checkout).resolve()):
            raise ImportError(f"jaxdqn was imported from {file}")
        started = time.perf_counter()
        run = _compiled(jaxdqn, json.loads(fields), int(iterations))
        compile_seconds = time.perf_counter() - started
        run()
        duration = _timed(run, 1)["seconds"]
    except Exception as error:
        _send(missing=f"{type(error).__name__}: {error}".partition("\n")[0])
        return
    calls = max(1, math.ceil(float(seconds) / duration))
    _send(compile_seconds=compile_seconds, file=file)
    for _ in sys.stdin:
        _send(**_timed(run, calls), iterations=calls * int(iterations))


def _compiled(jaxdqn: Any, fields: dict[str, Any], iterations: int) -> Any:
    """Return a function that runs a compiled chunk from the state of the previous call."""
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
    }
    trainer = jaxdqn.make_trainer(jaxdqn.Config(**fields))
    state = jax.jit(trainer.init)(jax.random.key(0))
    # Older checkouts have a function in place of the method.
    chunk = (
        trainer.chunk(iterations)
        if hasattr(trainer, "chunk")
        else jaxdqn.make_chunk(trainer, iterations)
    )
    compiled = jax.jit(chunk, donate_argnums=0).lower(state).compile()

    def run() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(compiled(state))

    return run


def _timed(run: Any, calls: int) -> dict[str, float]:
    started, cpu = time.perf_counter(), time.process_time()
    for _ in range(calls):
        run()
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}


def _send(**message: Any) -> None:
    print(json.dumps(message), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
