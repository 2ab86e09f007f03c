"""The device of this process, and its process group."""

import torch
import torch.distributed as dist
from torch.utils import deterministic

from pipeline.topology import Topology


def start_processes(topology: Topology) -> torch.device:
    """Choose the device and, with several processes, join their group (nccl on GPUs, gloo on CPUs).

    On a CPU deterministic algorithms are switched on: they cost little there and make equal steps equal to
    the bit.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", topology.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        torch.use_deterministic_algorithms(True)
        # Filling uninitialised memory only helps to find bugs, and costs time.
        setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (unknown to the type checker)
    if topology.world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device
