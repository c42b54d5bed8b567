"""Target description of a GPU that is not here, as the text proto of XLA:GPU.

Facts of the boards (NVIDIA H100 SXM5 80 GB, A100 SXM4 80 GB), as CUDA reports them. The
compiler needs neither CUDA nor a GPU, but without cuDNN it has no fused attention: what
it says of memory is that of attention whose scores are written out.
"""

from collections.abc import Mapping

_ALL = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 49152,
    "threads_per_core_limit": 2048,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
}
_BOARDS = {
    "a100": (
        "NVIDIA A100-SXM4-80GB",
        8,
        {
            "core_count": 108,
            "fpus_per_core": 64,
            "shared_memory_per_core": 167936,
            "shared_memory_per_block_optin": 166912,
            "memory_bandwidth": 2_039_000_000_000,
            "l2_cache_size": 41943040,
            "clock_rate_ghz": 1.41,
            "device_memory_size": 84_929_347_584,
        },
    ),
    "h100": (
        "NVIDIA H100 80GB HBM3",
        9,
        {
            "core_count": 132,
            "fpus_per_core": 128,
            "shared_memory_per_core": 233472,
            "shared_memory_per_block_optin": 232448,
            "memory_bandwidth": 3_352_320_000_000,
            "l2_cache_size": 52428800,
            "clock_rate_ghz": 1.98,
            "device_memory_size": 84_929_347_584,
        },
    ),
}


def target(kind: str) -> str:
    """The target of a kind of `topology.CHIPS`, as `get_topology_desc` reads it.

    >>> target("h100").splitlines()[-1]
    'device_description_str: "NVIDIA H100 80GB HBM3"'
    """
    name, major, facts = _BOARDS[kind]
    return "\n".join(
        [
            "gpu_device_info {",
            *_lines({**_ALL, **facts}),
            f"cuda_compute_capability {{ major: {major} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 7 }",
            f'device_description_str: "{name}"',
        ]
    )


def _lines(facts: Mapping[str, float]) -> list[str]:
    return [f"{key}: {value}" for key, value in facts.items()]
