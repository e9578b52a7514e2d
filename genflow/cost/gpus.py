"""The published limits of GPUs: dense arithmetic without sparsity, memory, and the bandwidths of memory and link.

Sources, as printed by NVIDIA: the data sheets of A100, H100, H200, B200 (HGX), L4, L40S, and the white paper of the Ada
architecture for GeForce RTX 4090; of A10G, which only Amazon sells, the page of its G5 instances. Numbers with sparsity
are halved. A link is one direction: half of NVLink's total, or PCI Express 4.0 with 16 lanes.
"""

from dataclasses import dataclass

from genflow.errors import UsageError, similar

PCIE = 32e9


@dataclass(frozen=True)
class Gpu:
    """A GPU's published limits.

    Args:
        name: as it is sold.
        bf16: floating-point operations per second of products of bfloat16, with sums in float32.
        tf32: the same for TF32, which float32 products use.
        fp32: the same for float32 without tensor cores.
        memory: bytes.
        bandwidth: bytes per second from its memory.
        link: bytes per second to the other GPUs of its node, in one direction.
    """

    name: str
    bf16: float
    tf32: float
    fp32: float
    memory: float
    bandwidth: float
    link: float


GPUS = {
    "b200": Gpu("B200", 2250e12, 1125e12, 75e12, 180e9, 8000e9, 900e9),
    "h200": Gpu("H200 SXM", 989e12, 494e12, 67e12, 141e9, 4800e9, 450e9),
    "h100": Gpu("H100 SXM", 989e12, 494e12, 67e12, 80e9, 3350e9, 450e9),
    "a100": Gpu("A100 SXM 80 GB", 312e12, 156e12, 19.5e12, 80e9, 2039e9, 300e9),
    "l40s": Gpu("L40S", 362e12, 183e12, 91.6e12, 48e9, 864e9, PCIE),
    "rtx4090": Gpu("RTX 4090", 165e12, 82.6e12, 82.6e12, 24e9, 1008e9, PCIE),
    "a10g": Gpu("A10G", 70e12, 35e12, 31.2e12, 24e9, 600e9, PCIE),
    "l4": Gpu("L4", 121e12, 60e12, 30.3e12, 24e9, 300e9, PCIE),
}


def gpu_named(name: str) -> Gpu:
    """A GPU by its name, such as `h100` or `RTX 4090`.

    Raises:
        UsageError: its limits are not in the table.
    """
    key = name.lower().replace(" ", "").replace("-", "").replace("_", "")
    if key not in GPUS:
        guess = similar(key, list(GPUS))
        raise UsageError(f"no GPU {name!r} in the table of limits{guess}", f"GPUs: {', '.join(GPUS)}")
    return GPUS[key]
