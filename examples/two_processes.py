"""A deep network guided by two processes: torchrun --nproc-per-node 2 examples/two_processes.py."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from mnist1d.data import make_dataset
from torch.nn.parallel import DistributedDataParallel

import pyguide
from pyguide.experiments.networks import DeepFCN, ResNet1D

dist.init_process_group("gloo")  # before Guidance, which then compares the batches of all
rank, processes = dist.get_rank(), dist.get_world_size()
torch.manual_seed(0)  # the same guide in every process, and the same order of the data
data = make_dataset()  # generated here: 4000 training and 1000 test signals of 40 points
x, y, x_test, y_test = (torch.tensor(data[name]) for name in ("x", "y", "x_test", "y_test"))
x, x_test = x.float(), x_test.float()
guide = ResNet1D(width=8)
target = DistributedDataParallel(DeepFCN(depth=20))  # the guide stays as it is
guidance = pyguide.Guidance(target, guide)
optimizer = torch.optim.Adam(target.parameters(), lr=3e-3)

for _ in range(5):
    for batch in torch.randperm(len(x)).split(256):
        own = batch[rank::processes]  # 128 of the 256 samples
        with guidance.capture():
            logits = target(x[own])
        guidance.total_loss(F.cross_entropy(logits, y[own]), x[own]).backward()
        optimizer.step()
        optimizer.zero_grad()
        guidance.step()

value = guidance.log_dict()["guidance/loss"]
values = [torch.empty_like(value) for _ in range(processes)]
dist.all_gather(values, value)
if rank == 0:
    accuracy = (target.module.eval()(x_test).argmax(dim=1) == y_test).float().mean().item()
    print(f"test accuracy: {100 * accuracy:.1f} %")
    print("guidance in each process:", *(f"{float(each):.6f}" for each in values))
dist.destroy_process_group()
