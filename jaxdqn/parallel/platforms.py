"""The platforms of JAX: a check before their first use."""

from __future__ import annotations

import jax


def check_platforms() -> None:
    """Start the platform on which JAX computes.

    Raises:
        ValueError: in one line, if ``JAX_PLATFORMS`` names one that JAX cannot start here.
    """
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        chosen = getattr(jax.config, "jax_platforms")  # noqa: B009  (declared at run time)
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"JAX_PLATFORMS={chosen!r}: must name platforms that JAX can start on this machine"
            f"{f' ({reason})' if reason else ''}; cpu always can, and without the variable JAX "
            "chooses"
        ) from error
