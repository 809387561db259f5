"""Training with the Hugging Face Trainer: densely, or while a pruner removes units."""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from core.checkpoints import Checkpoints
from core.engine import checkpointing
from core.engine.data import Batch, Features, length_of
from core.engine.epochs import EpochSampler
from core.engine.evaluate import HiddenTeacher, Teacher
from core.engine.methods import Pruner
from core.engine.narrowing import Narrowing, narrowing
from core.engine.tasks import Task
from core.errors import NumericalError
from core.jobs import spec


@dataclass(frozen=True, slots=True)
class StepReport:
    """Where training stands after an optimiser step."""

    step: int
    total_steps: int
    loss: float
    """Mean of the step's batches, without penalties; NaN where an earlier attempt took the step."""
    sparsity: float


StepListener = Callable[[StepReport], None]


def total_steps(rows: int, training: spec.Training, epochs: float) -> int:
    """Optimiser steps of so many passes over so many rows; at least one, if it is not none at all."""
    if not epochs:
        return 0
    batches = math.ceil(rows / training.per_device_train_batch_size)
    return max(1, math.ceil(math.ceil(batches / training.gradient_accumulation_steps) * epochs))


def train(
    task: Task,
    model: PreTrainedModel,
    features: Features,
    *,
    steps: int,
    steps_before: int = 0,
    stage: str,
    checkpoints: Checkpoints | None = None,
    teacher: Teacher | None = None,
    hidden_teacher: HiddenTeacher | None = None,
    pruner: Pruner | None = None,
    listen: StepListener,
) -> None:
    """Train in place for a number of optimiser steps, or for those that are left of them.

    A training that goes on from a checkpoint ends, on a CPU, with the same bits as one that never stopped.

    Args:
        task: Gives the loss.
        model: What is trained.
        features: The training rows.
        steps: How many optimiser steps.
        steps_before: How many the pruner has seen before, in another training.
        stage: Names this training within the job; each has its own checkpoints.
        checkpoints: Where it may go on from, and leaves its state; None to do neither.
        teacher: Answers that the model learns from, beside the labels or instead of them.
        hidden_teacher: Hidden states that it learns from as well.
        pruner: Removes from the model on the way.
        listen: Hears of every step; of a training that was over before, of its last.

    Raises:
        NumericalError: the loss is not finite.
        Interrupted: the job was told to stop; its state is in a checkpoint.
    """
    checkpoints = checkpoints or Checkpoints()
    found = checkpoints.fetch(stage)
    if found is not None and found.finished:
        checkpointing.restore(found.folder, model, pruner)
        listen(StepReport(steps, steps, math.nan, pruner.sparsity if pruner is not None else 0.0))
        return
    # A recovery sees the rows in another order than the pruning before it.
    seed = (task.training.seed + steps_before) % 2**32
    set_seed(seed)
    with (
        checkpoints.stop_deferred(),
        tempfile.TemporaryDirectory() as scratch,
        _dropout(model, task.dropout),
        _use_cache_kept(model),
        _narrowing(pruner) as narrow,
    ):
        trainer = _DistillingTrainer(
            task,
            model,
            pruner,
            teacher,
            hidden_teacher,
            args=_arguments(task.training, steps, seed, scratch),
            train_dataset=features,
            callbacks=[
                _PruningCallback(pruner, narrow, steps, steps_before, listen),
                _CheckpointCallback(stage, checkpoints),
            ],
        )
        try:
            trainer.train(resume_from_checkpoint=None if found is None else str(found.folder))
        finally:
            if pruner is not None:
                pruner.end_training()
        _take_autocast_off(trainer, model)
        result = Path(scratch) / "result"
        checkpointing.write(result, model, pruner)
        checkpoints.save_end(stage, steps, result)


def _take_autocast_off(trainer: Trainer, model: PreTrainedModel) -> None:
    """Leave the model as it was before training: evaluation and export are in fp32."""
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    # Unwrapping leaves this mark, by which the next training would take the model for prepared and stay in fp32.
    vars(model).pop("_is_accelerate_prepared", None)


def _narrowing(pruner: Pruner | None) -> AbstractContextManager[Narrowing | None]:
    """Compute with what a pruner leaves."""
    return nullcontext() if pruner is None else narrowing(pruner.anatomy, pruner.masks)


@contextmanager
def _dropout(model: PreTrainedModel, wanted: bool) -> Iterator[None]:
    """Switch the model's dropout off for a while unless it is wanted."""
    layers = [] if wanted else [m for m in model.modules() if isinstance(m, torch.nn.Dropout)]
    rates = [layer.p for layer in layers]
    for layer in layers:
        layer.p = 0.0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.p = rate


@contextmanager
def _use_cache_kept(model: PreTrainedModel) -> Iterator[None]:
    """The Trainer writes its own wish into the config, which is delivered."""
    said = vars(model.config)
    wanted = {name: said[name] for name in ("use_cache",) if name in said}
    try:
        yield
    finally:
        said.pop("use_cache", None)
        said.update(wanted)


def uses_bf16(training: spec.Training) -> bool:
    """Whether training multiplies in bf16: asked for, or `auto` on hardware that does so natively."""
    if training.precision != "auto":
        return training.precision == "bf16"
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _arguments(training: spec.Training, steps: int, seed: int, scratch: str) -> TrainingArguments:
    assert training.learning_rate is not None  # noqa: S101 resolved specs have one
    arguments = TrainingArguments(
        output_dir=scratch,
        max_steps=steps,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        per_device_train_batch_size=training.per_device_train_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        warmup_steps=int(steps * 0.05),
        lr_scheduler_type="linear",
        optim="adamw_torch_fused",
        max_grad_norm=1.0,
        bf16=uses_bf16(training),
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=seed,
        logging_strategy="no",
        save_strategy="no",
        remove_unused_columns=False,
        report_to=[],
        disable_tqdm=True,
    )
    # Of several GPUs, the first: a step has as many rows as were asked for, and what computes with a part of the
    # weights has them at hand.
    arguments._n_gpu = min(1, arguments.n_gpu)
    return arguments


class _DistillingTrainer(Trainer):
    """Takes the loss from the task, with the teacher's answers where there is one."""

    def __init__(
        self,
        task: Task,
        student: PreTrainedModel,
        pruner: Pruner | None,
        teacher: Teacher | None,
        hidden_teacher: HiddenTeacher | None,
        **options: Any,
    ) -> None:
        self.task, self.student, self.pruner = task, student, pruner
        self.teacher, self.hidden_teacher = teacher, hidden_teacher
        self.losses: list[Tensor] = []
        """Of the batches of the current step, without penalties."""
        # Without the processor, whose special tokens the Trainer would write into the config, which is delivered.
        super().__init__(model=student, data_collator=task.collate, **options)
        self.model_accepts_loss_kwargs = False
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, _PruningCallback):
                callback.trainer = self

    def _get_train_sampler(self, train_dataset: Any = None) -> EpochSampler:
        """The order of the rows depends on the seed and the epoch alone, so that it can be taken up in the middle."""
        rows_a_step = self.args.train_batch_size * self.args.gradient_accumulation_steps
        rows: Any = self.train_dataset
        lengths = [length_of(rows[i]) for i in range(len(rows))]
        return EpochSampler(lengths, rows_a_step, self.args.seed)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The part of a checkpoint that is the model's and the pruner's; the rest is the trainer's."""
        assert output_dir is not None  # noqa: S101 checkpoints have a folder
        checkpointing.write(Path(output_dir), self.student, self.pruner)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        checkpointing.restore(Path(resume_from_checkpoint), self.student, self.pruner)

    def compute_loss(
        self,
        model: Any,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        outputs = self.task.outputs(model, inputs)
        teacher = self.teacher.answer(inputs) if self.teacher is not None else None
        loss = self.task.loss(outputs, inputs, teacher)
        if self.hidden_teacher is not None:
            loss = loss + self.task.training.hidden_distillation * self.hidden_teacher.distance(inputs)
        self.losses.append(loss.detach())
        penalty = self.pruner.penalty() if self.pruner is not None else None
        if penalty is not None:
            loss = loss + penalty
        return (loss, outputs) if return_outputs else loss


class _PruningCallback(TrainerCallback):
    """Calls the pruner around every optimiser step and after every epoch, and tells how far training is."""

    trainer: _DistillingTrainer
    loss: float
    """Of the current step."""

    def __init__(
        self,
        pruner: Pruner | None,
        narrowing: Narrowing | None,
        steps: int,
        steps_before: int,
        listen: StepListener,
    ) -> None:
        self.pruner = pruner
        self.narrowing = narrowing
        self.steps = steps
        self.steps_before = steps_before
        self.listen = listen

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.trainer.losses.clear()
        if self.narrowing is not None:
            self.narrowing.update()
        if self.pruner is not None:
            self.pruner.begin_step(self.steps_before + state.global_step + 1)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        self.loss = float(torch.stack(self.trainer.losses).mean())
        if not math.isfinite(self.loss):
            raise NumericalError(
                f"The training loss became {self.loss} at step {state.global_step + 1}. "
                "A lower learning_rate or precision fp32 may help.",
                param="/training/learning_rate",
            )
        if self.pruner is not None:
            self.pruner.observe()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        step = state.global_step + 1
        if self.pruner is not None:
            scheduler = self.trainer.lr_scheduler
            assert scheduler is not None  # noqa: S101 training has begun
            self.pruner.step(self.steps_before + step, float(scheduler.get_last_lr()[0]))
        sparsity = self.pruner.sparsity if self.pruner is not None else 0.0
        self.listen(StepReport(step, self.steps, self.loss, sparsity))

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.pruner is not None:
            self.pruner.end_epoch()


class _CheckpointCallback(TrainerCallback):
    """Lets the trainer write a checkpoint where one is due, and hands it on.

    After the last step of an epoch it is written only when the epoch's end has been seen by all callbacks, as a
    training that goes on from there begins with the next epoch.
    """

    def __init__(self, stage: str, checkpoints: Checkpoints) -> None:
        self.stage = stage
        self.checkpoints = checkpoints

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert state.epoch is not None  # noqa: S101 training has begun
        if not state.epoch.is_integer():
            self._ask(state, control)

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._ask(state, control)

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        assert args.output_dir is not None  # noqa: S101 every training has a scratch folder
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self.checkpoints.save(self.stage, state.global_step, folder)
        shutil.rmtree(folder)

    def _ask(self, state: TrainerState, control: TrainerControl) -> None:
        # After the last step the result is kept instead.
        if state.global_step < state.max_steps:
            control.should_save = self.checkpoints.begin_if_due()
