"""The device of this process, and its process group."""

import os
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.utils import deterministic

from pipeline.meeting import has_lasting_store, store_of_this_start
from pipeline.topology import Topology
from shards import DataError, UsageError

# Longer than data are waited for (`shards.watchdog.Patience`), which ends with the better message.
DEFAULT_TIMEOUT = 600.0
_ONEDNN_SIZES = "192"  # a step of ResNet-50, forward and back, asks for 145


def start_processes(topology: Topology, timeout: float = DEFAULT_TIMEOUT) -> torch.device:
    """Choose the device and, with several processes, join their group (nccl on GPUs, gloo on CPUs).

    timeout: seconds that a process waits for another one before it gives up.

    On a CPU deterministic algorithms are switched on: they cost little there and make equal steps equal to
    the bit. And oneDNN is kept from remembering a thousand sizes of batches, which never come again: its
    remains scatter over the heap, and memory grows for hours.
    """
    if torch.cuda.is_available():
        device = torch.device("cuda", topology.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", _ONEDNN_SIZES)
        torch.use_deterministic_algorithms(True)
        # Filling uninitialised memory only helps to find bugs, and costs time.
        setattr(deterministic, "fill_uninitialized_memory", False)  # noqa: B010 (unknown to the type checker)
    if topology.world_size > 1:
        join_group(topology, "nccl" if device.type == "cuda" else "gloo", timeout)
    return device


def join_group(topology: Topology, backend: str, timeout: float = DEFAULT_TIMEOUT) -> None:
    """Join the group of all processes, whichever launcher started them; UsageError without a place to meet.

    Their place is written into the environment, where torch and others look for it.
    """
    if topology.meeting_point is None:
        raise UsageError(
            f"process {topology.rank} of {topology.world_size} is not told where the others are: set "
            "MASTER_ADDR and MASTER_PORT to rank 0's machine and a free port of it, or start with torchrun, "
            "srun or mpirun"
        )
    os.environ.update(topology.variables())
    host, port = topology.meeting_point
    limit = timedelta(seconds=timeout)
    try:
        if has_lasting_store():
            lasting = dist.TCPStore(host, port, is_master=False, timeout=limit)
            store = store_of_this_start(lasting, topology, timeout)
            dist.init_process_group(
                backend, store=store, rank=topology.rank, world_size=topology.world_size, timeout=limit
            )
        else:
            dist.init_process_group(backend, timeout=limit)
    except dist.DistError as error:  # the port is taken, say, or rank 0 cannot be reached
        raise DataError(
            f"the processes could not meet at {host}:{port}, MASTER_ADDR and MASTER_PORT: {error}"
        ) from error


def end_processes(topology: Topology) -> None:
    """Leave the group when all have come here: the end of one would look to the others like a loss."""
    if topology.world_size > 1:
        dist.barrier()
        dist.destroy_process_group()


def allow_tf32() -> None:
    """Let GPUs multiply float32 matrices in TF32, as they convolve them anyway: far faster, with ten bits of
    mantissa; for training, not for evaluation.
    """
    torch.backends.cuda.matmul.fp32_precision = "tf32"
