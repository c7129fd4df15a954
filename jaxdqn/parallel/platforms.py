"""Check that JAX can start its platforms, before their first use."""

from __future__ import annotations

import jax


def check_platforms() -> None:
    """Initialise the platforms of JAX.

    Raises:
        ValueError: if JAX cannot start a platform that ``JAX_PLATFORMS`` names; the message has
            one line.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen = getattr(jax.config, "jax_platforms")  # noqa: B009  (declared at run time)
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"JAX_PLATFORMS={chosen!r}: must name platforms that JAX can start on this machine"
            f"{f' ({reason})' if reason else ''}; cpu always can, and JAX chooses if the variable "
            "is not set"
        ) from error
