"""The processes of a distributed run (torchrun): their ranks, devices and barriers."""

from __future__ import annotations

import datetime
import os
from contextlib import ExitStack

import torch
import torch.distributed

PATIENCE = datetime.timedelta(hours=12)
"""Time that processes wait for the first one, which prepares data and features."""


class Processes:
    """This process among those of a run; a run without torchrun has one.

    Attributes:
        rank: Number of this process; the one of rank 0 reads, writes and logs.
        world: Number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))

    @property
    def first(self) -> bool:
        """Whether this process reads, writes and logs for all."""
        return self.rank == 0

    def join(self, device: torch.device, name: str, stack: ExitStack) -> torch.device:
        """Meet the other processes, until `stack` is closed; returns the device of this one.

        Args:
            device: As chosen by the user.
            name: Of the run: a recipe's stages share one store, in which each needs keys of its own.
            stack: Leaves the group when it is closed.
        """
        if self.world == 1:
            return device
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        store, rank, world = next(torch.distributed.rendezvous("env://", timeout=PATIENCE))
        torch.distributed.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=torch.distributed.PrefixStore(name, store),
            rank=rank,
            world_size=world,
            timeout=PATIENCE,
        )
        stack.callback(torch.distributed.destroy_process_group)
        return device

    def wait(self) -> None:
        """Return when all processes have called this."""
        if self.world > 1:
            torch.distributed.barrier()
