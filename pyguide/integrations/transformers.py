"""Guidance in the Trainer of Hugging Face transformers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pyguide.guidance import Guidance
from pyguide.guidance.timing import device_of
from pyguide.torch_files import load_tensors, save_tensors

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_utils import get_last_checkpoint
except ImportError as error:
    raise ImportError(
        "GuidedTrainer needs transformers: pip install transformers accelerate"
    ) from error

__all__ = ["GuidedTrainer"]

_STATE = "guidance.pt"


class GuidedTrainer(Trainer):
    """A transformers.Trainer whose model is guided in training.

    Each batch's loss gets the guidance term once, as a mean over the batches that an optimizer
    step accumulates, however Trainer normalises the task's loss (by the number of batches or by
    `num_items_in_batch`): the task's gradient is what it is without guidance. Steps of the
    optimizer are counted, not batches, and not steps that were skipped. Evaluation and prediction
    run as without it. The guide is moved to the model's device, and runs under the precision
    (``fp16``, ``bf16``) of the training arguments.

    Also a mixin: ``class GuidedSeq2SeqTrainer(GuidedTrainer, Seq2SeqTrainer): pass``.

    Parameters
    ----------
    *args, **kwargs
        As of transformers.Trainer.
    guidance : Guidance or callable
        A :class:`pyguide.Guidance` whose target is the model or a part of it; or a function of
        the model that makes one, for `model_init`, which makes a new model for each training.
    inputs : callable, optional
        What the guide sees, as a function of the batch (a dict). By default the batch without
        labels, as keyword arguments, and of these the ones that the guide's ``forward`` names;
        all if it takes ``**kwargs``.
    mask : str, callable or None
        Which positions are valid, :meth:`pyguide.Guidance.loss`'s `mask`: an entry of the batch
        that is 0 for padding, if the batch has it, or a function of the batch that gives a bool
        tensor or None. None: no mask, for models whose paired layers are no sequences.
    sample_ids : str, optional
        The entry of the batch that has the samples' positions in the data set, for a guidance
        with a `guide_cache`; the model does not get it. Data sets of the library datasets keep
        it with ``remove_unused_columns=False``.

    Attributes
    ----------
    guidance : Guidance
        It stays open after training.

    Raises
    ------
    TypeError
        For a `guidance`, `inputs`, `mask` or `sample_ids` of another type.
    ValueError
        If the target of `guidance` is not in the model; for several GPUs in one process
        (nn.DataParallel); when training, for a guide that takes nothing of the batch, and as
        :meth:`pyguide.Guidance.loss`.
    FileNotFoundError
        When training: if the checkpoint to resume from has no ``guidance.pt``.

    Notes
    -----
    Trainer logs the whole loss as "loss". Beside it are :meth:`pyguide.Guidance.log_dict`'s
    values, means over the steps since the last log as "loss" is, without waiting for the device
    in between; ``guidance/weight`` and ``guidance/step`` are the last ones.

    The state of guidance is saved as ``guidance.pt`` in each checkpoint's folder, and
    ``train(resume_from_checkpoint=...)`` goes on with it, on either side of `release_at`. Without
    that, ``train()`` begins with the state that `guidance` had when the trainer was made.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from transformers import TrainingArguments
    >>> import pyguide
    >>> from pyguide.integrations.transformers import GuidedTrainer
    >>> class Classifier(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    ...
    ...     def forward(self, x, labels=None):
    ...         logits = self.layers(x)
    ...         return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}
    >>> class Guide(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.layers = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 3))
    ...
    ...     def forward(self, x):
    ...         return self.layers(x)
    >>> model = Classifier()
    >>> guidance = pyguide.Guidance(model, Guide(), release_at=100)
    >>> data = [{"x": torch.randn(8), "labels": torch.tensor(i % 3)} for i in range(128)]
    >>> args = TrainingArguments(
    ...     "unused", per_device_train_batch_size=32, max_steps=3, use_cpu=True,
    ...     save_strategy="no", report_to="none", disable_tqdm=True,
    ... )
    >>> trainer = GuidedTrainer(model=model, args=args, train_dataset=data, guidance=guidance)
    >>> _ = trainer.train()
    {...}
    >>> guidance.steps, guidance.pairs
    (3, [('layers.0', 'layers.0')])
    """

    def __init__(
        self,
        *args: Any,
        guidance: Guidance | Callable[[nn.Module], Guidance],
        inputs: Callable[[Mapping[str, Any]], Any] | None = None,
        mask: str | Callable[[Mapping[str, Any]], Tensor | None] | None = "attention_mask",
        sample_ids: str | None = None,
        **kwargs: Any,
    ) -> None:
        # A guide can be called too, but makes no Guidance.
        if isinstance(guidance, nn.Module) or not (
            isinstance(guidance, Guidance) or callable(guidance)
        ):
            raise TypeError(
                "guidance must be a pyguide.Guidance or a function of the model that makes one, "
                f"got {type(guidance).__name__}"
            )
        if inputs is not None and not callable(inputs):
            raise TypeError(f"inputs must be a function of the batch, got {inputs!r}")
        if not (mask is None or isinstance(mask, str) or callable(mask)):
            raise TypeError(f"mask must be a name, a function of the batch or None, got {mask!r}")
        if not isinstance(sample_ids, str | None):
            raise TypeError(f"sample_ids must be the name of an entry, got {sample_ids!r}")
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                "GuidedTrainer cannot guide the replicas of nn.DataParallel: start one process a "
                "GPU with torchrun, or show it one GPU with CUDA_VISIBLE_DEVICES"
            )
        self._make_guidance = None if isinstance(guidance, Guidance) else guidance
        self.guidance = guidance if isinstance(guidance, Guidance) else guidance(self.model)
        self._check_target()
        self._inputs = inputs
        self._mask = mask
        self._sample_ids = sample_ids
        self._ids: Tensor | None = None
        self._first_state = self.guidance.state_dict()
        self._resumed_state: dict[str, Any] | None = None
        self._averages = _Averages()
        self.add_callback(_OptimizerSteps(self))

    def train(
        self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        """As of Trainer; goes on with the guidance of the checkpoint."""
        self._resumed_state = self._saved_state(resume_from_checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """As of Trainer, with the guidance term in training."""
        options = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        # Trainer evaluates in eval mode, also in the middle of training.
        if not (self.is_in_train and model.training) or self.guidance.released:
            return super().compute_loss(model, inputs, **options)
        x, mask = self._guide_inputs(inputs), self._valid_positions(inputs)
        with self.guidance.capture():
            result = super().compute_loss(model, inputs, **options)
        loss = self._guided(result[0] if return_outputs else result, x, mask, num_items_in_batch)
        return (loss, result[1]) if return_outputs else loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As of Trainer; the logs of training also have the guidance's."""
        if "loss" in logs:
            logs |= self._averages.pop()
        super().log(logs, *args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As of Trainer; the folder of a checkpoint also gets ``guidance.pt``."""
        super().save_model(output_dir, _internal_call=_internal_call)
        # Here rather than in on_save: a checkpoint that is cut short must not lack it.
        if _internal_call and output_dir is not None and self.args.should_save:
            save_tensors(Path(output_dir) / _STATE, self.guidance.state_dict())

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        prepared: dict[str, Any] = super()._prepare_inputs(inputs)
        # Models take no argument that they do not know.
        self._ids = None if self._sample_ids is None else prepared.pop(self._sample_ids, None)
        return prepared

    def _guided(
        self, task: Tensor, x: Any, mask: Tensor | None, num_items_in_batch: Tensor | int | None
    ) -> Tensor:
        batches = self.current_gradient_accumulation_steps
        # Trainer divides the sum by the number of batches, but not if the task's loss is scaled.
        divisor = batches if self._is_scaled(num_items_in_batch) else 1
        with self.accelerator.autocast():
            loss = self.guidance.total_loss(task * divisor, x, mask=mask, sample_ids=self._ids)
            loss = loss / divisor
        self._averages.add(self.guidance.log_dict(), 1 / batches)
        return loss

    def _is_scaled(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether the task's losses of an optimizer step add up to its loss: as training_step."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        by_items = self.model_accepts_loss_kwargs and num_items_in_batch is not None
        return by_items or self.compute_loss_func is not None

    def _guide_inputs(self, inputs: Mapping[str, Any]) -> Any:
        if self._inputs is not None:
            return self._inputs(inputs)
        known = {name: value for name, value in inputs.items() if name not in self.label_names}
        parameters = inspect.signature(self.guidance.guide.forward).parameters
        if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            known = {name: value for name, value in known.items() if name in parameters}
        if not known:
            raise ValueError(
                f"the guide's forward has the parameters {', '.join(parameters) or '(none)'}, and "
                f"the batch has {', '.join(inputs)}: give GuidedTrainer(inputs=...) a function of "
                "the batch"
            )
        return known

    def _valid_positions(self, inputs: Mapping[str, Any]) -> Tensor | None:
        if callable(self._mask):
            return self._mask(inputs)
        mask = None if self._mask is None else inputs.get(self._mask)
        return None if mask is None else mask.bool()

    def _has_target(self) -> bool:
        return any(module is self.guidance.target for module in self.model.modules())

    def _check_target(self) -> None:
        if not self._has_target():
            raise ValueError(
                "the target of guidance must be the trainer's model or a part of it; for "
                "model_init, give GuidedTrainer(guidance=...) a function of the model"
            )

    def _begin(self) -> None:
        """Be where training starts, with its model."""
        if self._make_guidance is not None and not self._has_target():
            self.guidance.close()
            self.guidance = self._make_guidance(self.model)
        self._check_target()
        self.guidance.guide.to(device_of(self.guidance.target))
        self.guidance.load_state_dict(self._resumed_state or self._first_state)
        self._averages = _Averages()

    def _saved_state(self, checkpoint: str | bool | None) -> dict[str, Any] | None:
        folder = get_last_checkpoint(self.args.output_dir) if checkpoint is True else checkpoint
        # Trainer says what is wrong with a folder that is not there.
        if not folder or not Path(folder).is_dir():
            return None
        path = Path(folder) / _STATE
        try:
            return load_tensors(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} has no {_STATE}, so no GuidedTrainer saved it; to start guidance "
                f"there, write one: torch.save(trainer.guidance.state_dict(), {str(path)!r})"
            ) from error


class _OptimizerSteps(TrainerCallback):
    """Counts the steps that the optimizer takes."""

    def __init__(self, trainer: GuidedTrainer) -> None:
        self.trainer = trainer
        self.scale = 1.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.trainer._begin()

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.scale = self._scale()

    def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not accelerator.optimizer_step_was_skipped: it does not see what fused optimizers skip.
        if self._scale() >= self.scale:
            self.trainer.guidance.step()

    def _scale(self) -> float:
        scaler = self.trainer.accelerator.scaler
        return 1.0 if scaler is None else scaler.get_scale()


class _Averages:
    """Weighted means of tensors on their device, and the last of numbers."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor | float], weight: float) -> None:
        for name, value in values.items():
            if isinstance(value, Tensor):
                self._sums[name] = self._sums.get(name, 0.0) + weight * value
                self._weights[name] = self._weights.get(name, 0.0) + weight
            else:
                self._last[name] = value

    def pop(self) -> dict[str, float]:
        """The values, which begin anew. Waits for the device."""
        means = {name: total.item() / self._weights[name] for name, total in self._sums.items()}
        values = means | self._last
        for kept in (self._sums, self._weights, self._last):
            kept.clear()
        return values
