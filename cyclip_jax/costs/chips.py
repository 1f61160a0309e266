"""Accelerators by their data sheets: memory, its bandwidth, and the bandwidth of their links."""

import dataclasses
from typing import Any

from cyclip_jax.training.flops import peak_flops

_GIB, _GB = 2**30, 10**9
# What JAX takes of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPU_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Chip:
    """One accelerator, as JAX counts devices.

    Attributes:
      device_kind: the name that jax.Device and flops.py's table of peaks use.
      memory: bytes that programs may take.
      memory_bandwidth: bytes per second.
      link_bandwidth: bytes per second that it receives from other chips, over all its links.
      slice_shape: (dimensions, chips) of the largest slice of a TPU; None for a GPU.
      target: what else XLA's compiler asks about a GPU; None for a TPU.
    """

    device_kind: str
    memory: float
    memory_bandwidth: float
    link_bandwidth: float
    slice_shape: tuple[int, int] | None = None
    target: dict[str, Any] | None = None

    @property
    def is_tpu(self) -> bool:
        """Whether it is a TPU, and not a GPU."""
        return self.slice_shape is not None

    @property
    def peak_flops(self) -> float:
        """Dense bfloat16 operations per second."""
        peak = peak_flops(self.device_kind)
        if peak is None:
            raise LookupError(f"flops.py has no peak of {self.device_kind}")
        return peak


def _tpu(device_kind, memory, bandwidth, links, dimensions, largest):
    shape = (dimensions, largest)
    return Chip(device_kind, memory * _GIB, bandwidth * _GB, links * _GB, slice_shape=shape)


def _gpu(device_kind, memory, bandwidth, links, *target):
    names = ("capability", "cores", "fpus_per_core", "shared_kib", "l2_mib", "gigahertz")
    return Chip(
        device_kind,
        GPU_SHARE * memory * _GB,
        bandwidth * _GB,
        links * _GB,
        target=dict(zip(names, target, strict=True)),
    )


# Bandwidths in one direction: half of what is given for both.
CHIPS = {
    # GiB that the TPU compiler says there are, GB/s, GB/s of links: cloud.google.com/tpu/docs, the
    # page of each version, on which the memories are 32, 16, 95 and 32 GB.
    "v4": _tpu("TPU v4", 30.75, 1200, 300, 3, 4096),
    "v5e": _tpu("TPU v5 lite", 15.75, 819, 200, 2, 256),
    "v5p": _tpu("TPU v5", 95.74, 2765, 600, 3, 8960),
    "v6e": _tpu("TPU v6 lite", 31.25, 1638, 400, 2, 256),
    # GB, GB/s, GB/s of NVLink, or of PCIe where there is none: NVIDIA's data sheet of each; of the
    # B200, an eighth of the DGX B200's. Then, for the compiler, figures of NVIDIA's architecture
    # white papers: compute capability, multiprocessors, and of each the float32 units and KiB of
    # shared memory; MiB of L2; GHz.
    "a100-40gb": _gpu("NVIDIA A100-SXM4-40GB", 40, 1555, 300, "8.0", 108, 64, 164, 40, 1.41),
    "a100-80gb": _gpu("NVIDIA A100-SXM4-80GB", 80, 2039, 300, "8.0", 108, 64, 164, 40, 1.41),
    "h100": _gpu("NVIDIA H100 80GB HBM3", 80, 3350, 450, "9.0", 132, 128, 228, 50, 1.98),
    "h200": _gpu("NVIDIA H200", 141, 4800, 450, "9.0", 132, 128, 228, 50, 1.98),
    "b200": _gpu("NVIDIA B200", 180, 8000, 900, "10.0", 148, 128, 228, 126, 1.97),
    "l4": _gpu("NVIDIA L4", 24, 300, 32, "8.9", 58, 128, 100, 48, 2.04),
    "l40s": _gpu("NVIDIA L40S", 48, 864, 32, "8.9", 142, 128, 100, 96, 2.52),
}
