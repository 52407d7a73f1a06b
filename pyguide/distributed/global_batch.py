"""A distance of the batches of all processes together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pyguide.distances import Distance, LinearCKA, PairCost
from pyguide.distributed.costs import routes
from pyguide.distributed.exchange import exchange_of
from pyguide.distributed.feature_space import feature_space_cka
from pyguide.distributed.redistribution import (
    Part,
    Samples,
    gather_rows,
    gather_values,
    redistribute,
    sum_over_processes,
)
from pyguide.ops import gram
from pyguide.ops.contract import result_dtype
from pyguide.ops.distinct import distinct_layers, no_values
from pyguide.ops.inputs import check_layers, check_pairs, check_tokens

__all__ = ["GlobalBatch"]

_Pairs = list[tuple[int, int]]
# Values and degenerate flags: one a pair.
_Distances = tuple[Tensor, Tensor]


class GlobalBatch(Distance):
    """A distance between layers whose samples are spread over processes.

    CKA of the global batch is not the mean of the processes' CKAs, and nor are other distances.
    This is exact, and every process gets the same values. The gradient in a process's layers is
    the true one times the number of processes, because DistributedDataParallel and FSDP then take
    the mean over them: so trained, one process and many do the same.

    But for padded layers, no process holds all samples of all layers. For linear CKA, RBF CKA and
    Euclidean RSA each gets all samples of its share of the features, and Gram matrices are added
    up (2 n d values and 2 N^2 sent a layer, N samples in all, n a process); for linear CKA, where
    it sends less, d x d products of each process's samples are added up instead. Tokens that are
    compared one by one are dealt out, and for other distances whole pairs.

    Parameters
    ----------
    distance : Distance
        Of the whole batch.
    process_group : ProcessGroup, optional
        The processes; by default all. Each of them makes this object, at the same time, and
        calls it with its samples of the same layers: different numbers of samples are fine.

    Raises
    ------
    RuntimeError
        If torch.distributed is not initialised; in a call if the processes compare different
        layers, or one has failed or ended: then the others do not wait.

    Notes
    -----
    Backward is a collective too: every process must run it. Compiled code breaks its graph here.

    Examples
    --------
    >>> import tempfile, torch
    >>> import torch.distributed as dist
    >>> from pyguide.distances import LinearCKA
    >>> from pyguide.distributed import GlobalBatch
    >>> store = dist.FileStore(tempfile.mktemp(), 1)
    >>> dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    >>> x = torch.randn(64, 10)
    >>> GlobalBatch(LinearCKA())([x], [2 * x + 1]).round(decimals=4).abs()
    tensor([0.])
    >>> dist.destroy_process_group()
    """

    def __init__(self, distance: Distance, process_group: dist.ProcessGroup | None = None) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError(
                "GlobalBatch needs torch.distributed: call init_process_group() before"
            )
        group = dist.group.WORLD if process_group is None else process_group
        assert group is not None
        if dist.get_rank(group) < 0:
            raise ValueError("process_group: this process is not in it")
        self.distance = distance
        self.name = distance.name
        self.min_samples = distance.min_samples
        self.process_group = group
        #: Bytes that this process has sent, by collective.
        self.sent: Counter[str] = Counter()
        #: What else must be the same in all processes, for the message if it is not.
        self.context = ""
        #: The same, of what does not change: asked for and compared in the first call alone.
        self.constant_context: Callable[[], str] | None = None
        self._exchange = exchange_of(group)

    def __repr__(self) -> str:
        return f"GlobalBatch({self.distance!r}, processes={self._exchange.size})"

    def __call__(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
    ) -> Tensor:
        return self.values_and_flags(xs, ys, pairs=pairs)[0]

    def values_and_flags(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        compare: Any = self._compare
        if torch.compiler.is_compiling():
            compare = torch.compiler.disable(compare)
        values, flags = compare(xs, ys, pairs, per_token)
        return values, flags

    def _compare(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        pairs: Sequence[tuple[int, int]] | None,
        per_token: bool,
    ) -> tuple[Tensor, Tensor | None]:
        try:
            checked = _check(xs, ys, pairs, per_token)
        except Exception as error:
            self.fail(error)
            raise
        if not checked:
            return no_values(xs, ys, per_token)
        layers, left, right = distinct_layers(xs, ys, checked)
        indices = list(zip(left, right, strict=True))
        # Which layers are the same tensor decides what is sent.
        samples = self._samples(
            [*xs, *ys],
            f"pairs {checked} of distinct layers {indices}, per_token {per_token}",
        )
        if samples.processes == 1:
            return self.distance.values_and_flags(xs, ys, pairs=pairs, per_token=per_token)
        if per_token:
            values, flags = self._by_tokens(layers, indices, samples)
        elif isinstance(self.distance, LinearCKA):
            values, flags = self._linear_cka(self.distance, layers, indices, samples)
        elif self.distance.of_grams:
            values, flags = self._in_sample_space(layers, indices, samples)
        else:
            values, flags = self._by_pairs(layers, indices, samples)
        return values.to(result_dtype([*xs, *ys])), flags

    def samples_of_origin(self, n: int) -> int:
        return self.distance.samples_of_origin(n)

    def costs(
        self,
        xs: Sequence[Tensor],
        ys: Sequence[Tensor],
        *,
        pairs: Sequence[tuple[int, int]] | None = None,
        per_token: bool = False,
    ) -> Sequence[PairCost] | None:
        """Those of ``distance`` for this process's samples alone."""
        return self.distance.costs(xs, ys, pairs=pairs, per_token=per_token)

    def gather(
        self, layers: Sequence[tuple[Tensor, Tensor | None]]
    ) -> list[tuple[Tensor, Tensor | None]]:
        """All processes' samples of layers that may be padded.

        Parameters
        ----------
        layers : sequence of (Tensor, Tensor or None)
            (n, ...), and where they are padded, (n, T, ...) with an (n, T) bool mask of what is
            valid. T may differ between processes: the shorter ones are padded.

        Returns
        -------
        sequence of (Tensor, Tensor or None)
            (N, ...) and (N, T), the same on every process.
        """
        samples = self._samples(
            [x for x, _ in layers], "padded layers", padded=[m is not None for _, m in layers]
        )
        lengths = [0 if mask is None else mask.size(1) for _, mask in layers]
        longest = [max(each) for each in zip(*self._exchange.numbers(lengths), strict=True)]
        gathered: list[tuple[Tensor, Tensor | None]] = []
        for (x, mask), length in zip(layers, longest, strict=True):
            if mask is not None:
                mask = gather_rows(_lengthened(mask, length), samples)
                x = _lengthened(x, length)
            gathered.append((gather_rows(x, samples), mask))
        return gathered

    def fail(self, error: BaseException) -> None:
        """Tell the other processes, which wait for this one, why it leaves the step."""
        self._exchange.fail(error)

    def _samples(self, layers: Sequence[Tensor], what: str, padded: Sequence[bool] = ()) -> Samples:
        """How many samples each process has, if all are about to do the same."""
        described = [
            _description(x, skipped=2 if any(padded[i : i + 1]) else 1)
            for i, x in enumerate(layers)
        ]
        constant = "" if self.constant_context is None else self.constant_context()
        sizes = self._exchange.sizes(
            layers[0].size(0),
            f"{self.distance.name}{self.context}{constant}, {what}, layers {', '.join(described)}",
        )
        self.constant_context = None
        if sum(sizes) < self.min_samples:
            raise ValueError(
                f"{self.name!r} needs at least {self.min_samples} samples, all processes together "
                f"have {sum(sizes)}"
            )
        return Samples(self.process_group, self._exchange.rank, sizes, self.sent)

    def _linear_cka(
        self, distance: LinearCKA, layers: list[Tensor], pairs: _Pairs, samples: Samples
    ) -> _Distances:
        """Each set of layers that pairs connect by the way that sends less."""
        parts: list[tuple[list[int], _Distances]] = []
        even = _even_shares(layers, samples)
        chosen = routes(even, pairs, samples.processes, distance.debiased)
        for in_feature_space, members, positions in chosen:
            some = [layers[i] for i in members]
            local = [(members.index(pairs[p][0]), members.index(pairs[p][1])) for p in positions]
            if in_feature_space:
                values, flags = feature_space_cka(some, local, distance.debiased, samples)
                parts.append((positions, (1 - values, flags)))
            else:
                parts.append((positions, self._in_sample_space(some, local, samples)))
        order = [p for positions, _ in parts for p in positions]
        return (
            _ordered(torch.cat([values.double() for _, (values, _) in parts]), order),
            _ordered(torch.cat([flags for _, (_, flags) in parts]), order),
        )

    def _in_sample_space(self, layers: list[Tensor], pairs: _Pairs, samples: Samples) -> _Distances:
        """Features are dealt out; the Gram matrices of the shares are added up."""
        matrices = [x.reshape(len(x), -1) for x in layers]
        plan = [
            _shares([x.size(1) for x in matrices], r, samples.processes)
            for r in range(samples.processes)
        ]
        anchor, shares = redistribute(matrices, plan, samples)
        stack = anchor.new_zeros((len(layers), samples.n, samples.n), dtype=result_dtype(layers))
        mine = [part.layer for part in plan[samples.rank]]
        if mine:
            precision = getattr(self.distance, "precision", None)
            grams = gram(shares, center=True, precision=precision).to(stack.dtype)
            if len(mine) == len(layers):
                stack = grams
            else:
                stack = torch.stack(
                    [
                        grams[mine.index(i)] if i in mine else zero
                        for i, zero in enumerate(stack.unbind())
                    ]
                )
        summed = sum_over_processes(anchor, stack, samples)
        every = [
            k if x.requires_grad else k.detach()
            for k, x in zip(summed.unbind(), layers, strict=True)
        ]
        values, flags = self.distance.from_grams(every, pairs)
        assert flags is not None
        return values, flags

    def _by_tokens(self, layers: list[Tensor], pairs: _Pairs, samples: Samples) -> _Distances:
        """Tokens are dealt out."""
        tokens = layers[0].size(1)
        plan = [
            _shares([tokens] * len(layers), r, samples.processes) for r in range(samples.processes)
        ]
        anchor, shares = redistribute(layers, plan, samples)
        counts = [parts[0].last - parts[0].first if parts else 0 for parts in plan]
        if shares:
            found = self.distance.values_and_flags(shares, shares, pairs=pairs, per_token=True)
            table = _table(*found)
        else:
            table = anchor.new_zeros((2, len(pairs), 0), dtype=torch.float64)
        every = gather_values(anchor, table.movedim(2, 0), counts, samples)  # (T, 2, P)
        return every[:, 0].mT, every[:, 1].mT == 1

    def _by_pairs(self, layers: list[Tensor], pairs: _Pairs, samples: Samples) -> _Distances:
        """Whole pairs are dealt out."""
        matrices = [x.reshape(len(x), -1) for x in layers]
        dealt = _dealt(pairs, [x.size(1) for x in matrices], samples.processes)
        used = [list(dict.fromkeys(i for p in mine for i in pairs[p])) for mine in dealt]
        plan = [[Part(i, 0, matrices[i].size(1)) for i in mine] for mine in used]
        anchor, shares = redistribute(matrices, plan, samples)
        mine = used[samples.rank]
        if mine:
            whole = [
                x.view(len(x), *layers[i].shape[1:]) for i, x in zip(mine, shares, strict=True)
            ]
            local = [
                (mine.index(pairs[p][0]), mine.index(pairs[p][1])) for p in dealt[samples.rank]
            ]
            table = _table(*self.distance.values_and_flags(whole, whole, pairs=local))
        else:
            table = anchor.new_zeros((2, 0), dtype=torch.float64)
        counts = [len(positions) for positions in dealt]
        every = gather_values(anchor, table.mT, counts, samples)  # (P, 2)
        every = _ordered(every, [p for positions in dealt for p in positions])
        return every[:, 0], every[:, 1] == 1


def _check(
    xs: Sequence[Tensor],
    ys: Sequence[Tensor],
    pairs: Sequence[tuple[int, int]] | None,
    per_token: bool,
) -> _Pairs:
    groups = (("xs[]", xs), ("ys[]", ys))
    check_layers(groups, min_samples=1)
    if per_token:
        check_tokens(groups)
    return check_pairs(pairs, len(xs), len(ys))


def _description(x: Tensor, skipped: int) -> str:
    """What must be the same in all processes."""
    wants = " with gradient" if _wants_gradient(x) else ""
    return f"{tuple(x.shape[skipped:])} {str(x.dtype).removeprefix('torch.')}{wants}"


def _even_shares(layers: list[Tensor], samples: Samples) -> list[Tensor]:
    """Layers on the meta device: what a process has in this step alone must not decide."""
    n = max(samples.n // samples.processes, 1)
    return [
        torch.empty((n, *x.shape[1:]), dtype=x.dtype, device="meta").requires_grad_(
            _wants_gradient(x)
        )
        for x in layers
    ]


def _wants_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _shares(sizes: Sequence[int], rank: int, processes: int) -> list[Part]:
    """A process's even share of every layer's second axis, without empty ones."""
    ranges = [(d * rank // processes, d * (rank + 1) // processes) for d in sizes]
    return [Part(i, first, last) for i, (first, last) in enumerate(ranges) if last > first]


def _dealt(pairs: _Pairs, features: Sequence[int], processes: int) -> list[list[int]]:
    """Which pairs each process compares: the largest first, to who has least."""
    loads = [0] * processes
    dealt: list[list[int]] = [[] for _ in loads]
    for p in sorted(
        range(len(pairs)), key=lambda p: -features[pairs[p][0]] - features[pairs[p][1]]
    ):
        least = loads.index(min(loads))
        loads[least] += features[pairs[p][0]] + features[pairs[p][1]]
        dealt[least].append(p)
    return dealt


def _table(values: Tensor, flags: Tensor | None) -> Tensor:
    """Values and flags in one tensor, (2, ...)."""
    own = torch.zeros_like(values) if flags is None else flags
    return torch.stack([values.double(), own.double()])


def _ordered(rows: Tensor, order: Sequence[int]) -> Tensor:
    """Rows that stand for these positions, at them."""
    # Stacked: an index would be copied to the device, and wait for it.
    inverse = sorted(range(len(order)), key=order.__getitem__)
    each = rows.unbind()
    return torch.stack([each[at] for at in inverse])


def _lengthened(x: Tensor, length: int) -> Tensor:
    """(n, T, ...) with zeros after T up to a length."""
    padding: list[Any] = [0, 0] * (x.dim() - 2) + [0, length - x.size(1)]
    return torch.nn.functional.pad(x, padding)
