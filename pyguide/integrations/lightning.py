"""Guidance in Lightning: a callback."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pyguide.distances import Distance
from pyguide.guidance import Guidance, Pair
from pyguide.guidance.schedules import Schedule

try:
    import lightning.pytorch as pl
except ImportError:
    try:
        import pytorch_lightning as pl
    except ImportError as error:
        raise ImportError("GuidanceCallback needs Lightning: pip install lightning") from error

__all__ = ["GuidanceCallback"]


def first_element(batch: Any) -> Any:
    """The batch itself if it is a tensor, else its first element."""
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0]
    raise TypeError(
        f"which part of a batch of type {type(batch).__name__} the guide sees is not clear: give "
        "GuidanceCallback(inputs=...) a function of the batch"
    )


class GuidanceCallback(pl.Callback):
    """Guides a LightningModule in training: a :class:`pyguide.Guidance` as a callback.

    During a fit it stands in for the module's ``training_step`` and adds the guidance term to the
    loss that this returns, for each batch once, inside Lightning's precision and
    DistributedDataParallel contexts. Lightning then treats the sum like any loss: it divides by
    `accumulate_grad_batches`, scales, and clips the gradient. Steps of the optimizer are counted,
    not batches, and not steps that a GradScaler skips. Validation, sanity checks, testing and
    prediction run as without it. The guide is moved to the module's device and is no part of the
    module, whose checkpoints keep their keys.

    Parameters
    ----------
    guide : nn.Module
        The network to resemble. Its dtype is that of its inputs: with a "true" precision, which
        converts batches, convert the guide too.
    pairs, distance, weight, release_at
        As of :class:`pyguide.Guidance`. Paths are relative to the target.
    target : str, optional
        Path of the submodule to guide, such as "model". By default the LightningModule.
    inputs : callable, optional
        What the guide sees, as a function of the batch: a tensor, a tuple of arguments or a dict
        of keyword arguments. By default the batch's first element.
    mask : callable, optional
        The (n, T) bool mask of valid positions, as a function of the batch: `mask` of
        :meth:`pyguide.Guidance.loss`.
    sample_ids : callable, optional
        The batch's positions in the data set, (n,) int64, as a function of the batch: for the
        option `guide_cache`.
    log : bool
        Whether :meth:`pyguide.Guidance.log_dict` goes to the module's ``log_dict`` with each
        batch. Waits for no device. The logger writes what the last batch before it gave, as of
        anything that is logged ``on_step``, and NaN for what that batch did not have, such as
        distances after release, until the epoch ends: Lightning repeats what is not logged anew.
    name : str
        Prefix of the logged names, in place of "guidance", and part of the key of this callback
        in checkpoints: several callbacks, such as for two guides, need different ones.
    **options
        Other arguments of :class:`pyguide.Guidance`, such as ``guide_mode="batch_stats"``.

    Attributes
    ----------
    guidance : Guidance or None
        That of the present fit, or of the last one, which is closed. None before the first.

    Raises
    ------
    TypeError
        For a guide that is no nn.Module, an `inputs`, `mask` or `sample_ids` that cannot be
        called, or an option that Guidance does not have. When the fit starts, as Guidance; in
        its steps, for a batch that is a dict, without `inputs`.
    ValueError
        When the fit starts: if there is no `target` of this path, and as Guidance.
    RuntimeError
        When the fit starts: for manual optimization, a ``training_step`` that takes a
        `dataloader_iter`, or an optimizer that is none of torch's. In its steps, as
        :meth:`pyguide.Guidance.loss`.

    Notes
    -----
    In manual optimization the loss never reaches Lightning: use :class:`pyguide.Guidance` in your
    ``training_step``, as in a loop of your own.

    The state of guidance is in every checkpoint, and ``Trainer.fit(ckpt_path=...)`` goes on with
    it, on either side of `release_at`. Another fit with the same callback goes on where the first
    one ended.

    Examples
    --------
    >>> import lightning.pytorch as pl
    >>> import torch
    >>> from torch import nn
    >>> from pyguide.integrations.lightning import GuidanceCallback
    >>> class Classifier(pl.LightningModule):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    ...
    ...     def training_step(self, batch):
    ...         x, y = batch
    ...         return nn.functional.cross_entropy(self.model(x), y)
    ...
    ...     def configure_optimizers(self):
    ...         return torch.optim.Adam(self.parameters())
    >>> guide = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    >>> callback = GuidanceCallback(guide, release_at=100)
    >>> trainer = pl.Trainer(
    ...     max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False,
    ...     enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    ... )
    >>> batches = [(torch.randn(64, 8), torch.randint(3, (64,))) for _ in range(3)]
    >>> trainer.fit(Classifier(), torch.utils.data.DataLoader(batches, batch_size=None))
    >>> callback.guidance.steps, callback.guidance.pairs
    (3, [('model.0', '0')])
    """

    def __init__(
        self,
        guide: nn.Module,
        pairs: str | Iterable[Pair | tuple[str, str]] = "even",
        distance: str | Distance = "cka",
        weight: float | Schedule = 1.0,
        release_at: int | None = None,
        *,
        target: str | None = None,
        inputs: Callable[[Any], Any] | None = None,
        mask: Callable[[Any], Tensor | None] | None = None,
        sample_ids: Callable[[Any], Tensor] | None = None,
        log: bool = True,
        name: str = "guidance",
        **options: Any,
    ) -> None:
        if not isinstance(guide, nn.Module):
            raise TypeError(f"guide must be an nn.Module, got {type(guide).__name__}")
        if target is not None and not isinstance(target, str):
            raise TypeError(f"target must be a path, got {type(target).__name__}")
        of_batch = {"inputs": inputs, "mask": mask, "sample_ids": sample_ids}
        for argument, function in of_batch.items():
            if function is not None and not callable(function):
                raise TypeError(f"{argument} must be a function of the batch, got {function!r}")
        pairs = pairs if isinstance(pairs, str) else list(pairs)
        inspect.signature(Guidance).bind(None, guide, **options)
        self.guide = guide
        self.target = target
        self.inputs = first_element if inputs is None else inputs
        self.mask = mask
        self.sample_ids = sample_ids
        # Not self.log, which Lightning sets to that of the module.
        self._logs = log
        self.name = name
        self.guidance: Guidance | None = None
        self._arguments = (guide, pairs, distance, weight, release_at)
        self._options = options
        self._state: dict[str, Any] = {}
        self._step: _GuidedStep | None = None
        #: Names with a value that Lightning repeats in this epoch.
        self._logged: set[str] = set()
        self._optimizer_hook: RemovableHandle | None = None

    @property
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            _check_training_step(pl_module)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Before the sanity check: a compiled module must not run before it has its hooks.
        self.guidance = self._make_guidance(pl_module)
        self._step = _GuidedStep(self, self.guidance, trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise RuntimeError(
                "GuidanceCallback counts the steps of a torch.optim.Optimizer, and this strategy "
                f"has a {type(optimizer).__name__}: use another strategy"
            )
        self._optimizer_hook = optimizer.register_step_post_hook(self._count)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._logged.clear()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        # After an exception there is no teardown.
        self._end()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._end()

    def state_dict(self) -> dict[str, Any]:
        """The state of guidance; empty before the first fit."""
        if self._step is None or self.guidance is None:
            return self._state
        return self.guidance.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`, now or when the next fit starts."""
        self._state = state_dict
        if self._step is not None and self.guidance is not None:
            self.guidance.load_state_dict(state_dict)

    def _make_guidance(self, module: pl.LightningModule) -> Guidance:
        target = _submodule(module, self.target)
        guidance = Guidance(target, *self._arguments, **self._options)
        self.guide.to(module.device)
        if self._state:
            try:
                guidance.load_state_dict(self._state)
            except Exception:
                guidance.close()
                raise
        return guidance

    def _count(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        assert self.guidance is not None
        # A GradScaler calls no step that it skips, but leaves it to fused optimizers to skip.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not found_inf.item():
            self.guidance.step()

    def _end(self) -> None:
        if self._optimizer_hook is not None:
            self._optimizer_hook.remove()
            self._optimizer_hook = None
        if self._step is not None and self.guidance is not None:
            self._step.remove()
            self._step = None
            self._state = self.guidance.state_dict()
            self.guidance.close()

    def _log(self, values: Mapping[str, Tensor | float], module: pl.LightningModule) -> None:
        if not self._logs:
            return
        named = {self.name + key.removeprefix("guidance"): v for key, v in values.items()}
        numbers = dict.fromkeys(self._logged - named.keys(), math.nan) | named
        tensors = {
            # Not torch.tensor, whose copy to a GPU waits for it.
            key: v if isinstance(v, Tensor) else torch.full((), float(v), device=module.device)
            for key, v in numbers.items()
        }
        if tensors:
            module.log_dict(tensors, on_step=True, on_epoch=False)
        self._logged = set(named)


class _GuidedStep:
    """Stands for the training_step of a module, and adds a guidance term to its loss."""

    def __init__(
        self,
        callback: GuidanceCallback,
        guidance: Guidance,
        trainer: pl.Trainer,
        module: pl.LightningModule,
    ) -> None:
        self.callback = callback
        self.guidance: Guidance | None = guidance
        self.trainer = trainer
        self.module = module
        self.step = module.training_step
        # Lightning looks here for the arguments of what a decorator wraps, one level deep.
        self.__wrapped__ = inspect.unwrap(self.step)
        module.training_step = self

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        guidance = self.guidance
        # A validation_step may call it too.
        if guidance is None or not self.trainer.training:
            return self.step(batch, *args, **kwargs)
        if guidance.released:
            self.callback._log({}, self.module)
            return self.step(batch, *args, **kwargs)
        with guidance.capture():
            output = self.step(batch, *args, **kwargs)
        loss = output.get("loss") if isinstance(output, Mapping) else output
        # None skips the batch; of what else is no loss Lightning tells.
        if not isinstance(loss, Tensor):
            return output
        x = self.callback.inputs(batch)
        mask = None if self.callback.mask is None else self.callback.mask(batch)
        ids = None if self.callback.sample_ids is None else self.callback.sample_ids(batch)
        total = guidance.total_loss(loss, x, mask=mask, sample_ids=ids)
        self.callback._log(guidance.log_dict(), self.module)
        return {**output, "loss": total} if isinstance(output, Mapping) else total

    def remove(self) -> None:
        """Take it out of the module, also from under that of another callback."""
        self.guidance = None
        outer = self.module.training_step
        while isinstance(outer, _GuidedStep) and outer is not self:
            if outer.step is self:
                outer.step = self.step
                return
            outer = outer.step
        if outer is self:
            del self.module.training_step
            if self.module.training_step != self.step:  # a compiled one is the module's own
                self.module.training_step = self.step

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the module, such as an average of weights, gets its own training_step.
        return getattr, (self.module, "training_step")


def _check_training_step(module: pl.LightningModule) -> None:
    if not module.automatic_optimization:
        raise RuntimeError(
            "GuidanceCallback needs automatic optimization: with manual optimization use "
            "pyguide.Guidance in your training_step, as in a loop of your own"
        )
    if "dataloader_iter" in inspect.signature(module.training_step).parameters:
        raise RuntimeError(
            "GuidanceCallback needs a training_step that takes a batch: with a dataloader_iter "
            "it cannot give the guide what the target sees"
        )


def _submodule(module: nn.Module, path: str | None) -> nn.Module:
    try:
        return module if path is None else module.get_submodule(path)
    except AttributeError as error:
        raise ValueError(
            f"target must be the path of a submodule of {type(module).__name__}, got {path!r}: "
            f"{error}"
        ) from error
