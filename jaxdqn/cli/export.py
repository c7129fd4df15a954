"""Export the policy of a run: ``jaxdqn export RUN --to DIR``."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxdqn.cli.backend import start_backend
from jaxdqn.cli.flags import parse, run_command
from jaxdqn.cli.parts import PolicyParts, references

_DESCRIPTION = """Export the greedy policy of a run to a directory. The policy can be used without
jaxdqn, with any batch size. load_policy.py in the directory loads it; see docs/export.md."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags:
    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Run directory."""
    to: Annotated[str, tyro.conf.arg(metavar="DIR")]
    """Directory to create for the policy."""
    which: Literal["best", "last"] = "best"
    """Parameters to export."""
    format: Literal["stablehlo", "onnx"] = "stablehlo"
    """stablehlo needs jax and flatbuffers, and runs on CPU, CUDA and TPU; onnx needs onnxruntime
    and no JAX. To write onnx, the extra onnx and jax2onnx must be installed; see docs/export.md."""
    quantize: Literal["float32", "bfloat16", "int8"] = "float32"
    """Dtype in which kernels are stored; int8 has a scale for each output channel. With bfloat16
    and int8, the agreement of actions and the return are measured."""
    distill_to: tuple[int, ...] | None = None
    """Widths of dense layers, as in --distill-to 32: export a smaller network instead, trained on
    the Q-values of the policy over the replay in the newest checkpoint. The agreement of actions
    and the return of this network are measured."""
    episodes: int = 100
    """Number of greedy episodes over which a return is measured."""
    parts: tyro.conf.OmitArgPrefixes[PolicyParts] = dataclasses.field(default_factory=PolicyParts)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_command(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = parse(Flags, argv, prog="jaxdqn export", description=_DESCRIPTION)
    parts = references(flags.parts)

    from jaxdqn.export.export_run import check_target, export_policy

    check_target(Path(flags.to))
    start_backend()
    record = export_policy(
        flags.run,
        flags.to,
        flags.which,
        format=flags.format,
        quantize=flags.quantize,
        distill_to=flags.distill_to,
        episodes=flags.episodes,
        **parts,
    )
    print(f"policy in {flags.to}: {report(record)}")


def report(record: dict[str, Any]) -> str:
    """Return the measurements as text."""
    text = f"{record['weight_bytes']:,} bytes of weights"
    if "original_weight_bytes" in record:
        share = record["weight_bytes"] / record["original_weight_bytes"]
        text += f", {share:.3f} of those of the original"
    if "model_bytes" in record:
        text += f"; {record['model_bytes']:,} bytes of policy.onnx"
    if "action_agreement" not in record:
        return text
    return (
        f"{text}; {record['action_agreement']:.2%} of actions agree; return "
        f"{record['return_mean']:.2f} ± {record['return_standard_error']:.2f}, of the original "
        f"{record['original_return_mean']:.2f} ± {record['original_return_standard_error']:.2f} "
        f"(mean ± standard error of {record['episodes']} greedy episodes)"
    )


if __name__ == "__main__":
    sys.exit(main())
