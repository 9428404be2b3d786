"""The processes that torchrun started; without it there is one, of rank 0."""

import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# Set by torchrun.
RANK, WORLD_SIZE = (int(os.environ.get(name, i)) for i, name in enumerate(("RANK", "WORLD_SIZE")))


def barrier() -> None:
    """Wait until every process gets here."""
    if WORLD_SIZE > 1:
        if not dist.is_initialized():
            both = "cpu:gloo,cuda:nccl"  # gloo for waiting, NCCL for gradients
            dist.init_process_group(both if torch.cuda.is_available() else "gloo")
        dist.all_reduce(torch.zeros(1))  # on the CPU, where dist.barrier would take a GPU


def average_gradients(network: nn.Module) -> nn.Module:
    """The network, whose gradients are averaged over all processes after each backward pass."""
    barrier()
    return DistributedDataParallel(network) if WORLD_SIZE > 1 else network
