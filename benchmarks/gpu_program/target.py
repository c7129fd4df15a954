"""Target GPU for compilation, as the text of a ``GpuTargetConfigProto`` of XLA."""

from __future__ import annotations

from typing import Any

NAME = "NVIDIA H100 80GB HBM3"

_VERSIONS = {"driver_version": "13.0.0", "runtime_version": "12.9.0",
             "compile_time_toolkit_version": "12.9.0", "dnn_version": "9.10.0",
             "cub_version": "3.1.2"}  # fmt: skip
_DEVICE: dict[str, Any] = {
    "name": NAME,
    "device_vendor": "NVIDIA Corporation",
    "platform_version": "Compute Capability 9.0a",
    "core_count": 132,
    "fpus_per_core": 128,
    "clock_rate_ghz": 1.98,
    "memory_bandwidth": 3_352_320_000_000,
    "device_memory_size": 84_942_979_072,
    "l2_cache_size": 50 * 2**20,
    "pcie_bandwidth": 32 * 2**30,
    "ecc_enabled": True,
    "device_address_bits": 64,
    "threads_per_warp": 32,
    "threads_per_block_limit": 1024,
    "threads_per_core_limit": 2048,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_block_limit": 2**16,
    "registers_per_core_limit": 2**16,
    "shared_memory_per_block": 48 * 2**10,
    "shared_memory_per_block_optin": 227 * 2**10,
    "shared_memory_per_core": 228 * 2**10,
    **_VERSIONS,
}


def target_config() -> str:
    """Return the description of an H100."""
    capability = "cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }"
    return "\n".join(
        [
            "gpu_device_info {",
            *(f"{name}: {_value(value)}" for name, value in _DEVICE.items()),
            capability,
            "}",
            'platform_name: "CUDA"',
            f'device_description_str: "{NAME}"',
            "runtime_version { major: 12 minor: 9 patch: 0 }",
            "dnn_version_info { major: 9 minor: 10 patch: 0 }",
        ]
    )


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)
