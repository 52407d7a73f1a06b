"""A deep network guided by two processes: torchrun --nproc-per-node 2 examples/two_processes.py."""

import gc

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mnist1d.data import make_dataset
from torch.nn.parallel import DistributedDataParallel

import pyguide
from pyguide.experiments.networks import DeepFCN, ResNet1D


def train(rank: int, processes: int) -> None:
    torch.manual_seed(0)  # the same guide in every process, and the same order of the data
    data = make_dataset()  # generated here: 4000 training and 1000 test signals of 40 points
    x, y, x_test, y_test = (torch.tensor(data[name]) for name in ("x", "y", "x_test", "y_test"))
    target = DistributedDataParallel(DeepFCN(depth=20))  # the guide stays as it is
    guidance = pyguide.Guidance(target, ResNet1D(width=8))
    optimizer = torch.optim.Adam(target.parameters(), lr=3e-3)
    for _ in range(5):
        for own in torch.randperm(len(x))[rank::processes].split(256 // processes):
            with guidance.capture():
                logits = target(x[own].float())
            guidance.total_loss(F.cross_entropy(logits, y[own]), x[own].float()).backward()
            optimizer.step()
            optimizer.zero_grad()
            guidance.step()
    values = [None] * processes
    dist.all_gather_object(values, f"{guidance.log_dict()['guidance/loss']:.6f}")
    if rank == 0:
        right = (target.module.eval()(x_test.float()).argmax(dim=1) == y_test).float()
        print(f"test accuracy: {100 * right.mean():.1f} %\nguidance in each process:", *values)


dist.init_process_group("gloo")  # before Guidance, which then compares the batches of all
train(dist.get_rank(), dist.get_world_size())
gc.collect()  # the wrapper is in a cycle, and keeps gloo's threads, on which Python's end aborts
dist.destroy_process_group()
