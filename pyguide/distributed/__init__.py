"""Distances of batches that are spread over the processes of torch.distributed."""

from pyguide.distributed.global_batch import GlobalBatch

__all__ = ["GlobalBatch"]
