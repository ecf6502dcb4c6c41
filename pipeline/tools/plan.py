"""What a recipe would do: stages, steps, memory, time, disk; and every refusal that can be known now."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from model_surgery.qk_norm import with_qk_norm
from model_surgery.shape import ModelShape
from pipeline.launch.devices import ASSUMED_MEMORY, device_memory
from pipeline.recalibration.layer_choice import LayerChoice
from pipeline.recalibration.memory import GIB, TrainingMemory
from pipeline.recalibration.mfu import training_flops
from pipeline.recalibration.ranks import estimate, resolve
from pipeline.recipe.model_source import plan_shape
from pipeline.recipe.random_model import with_trained_context
from pipeline.recipe.recalibration import ResolvedTraining
from pipeline.recipe.recipe import Recipe
from pipeline.runs.folder import is_complete
from pipeline.runs.manifest import Manifest
from pipeline.stages.checks import check_recipe, check_shapes
from pipeline.stages.evaluation import EvaluationPlan, plan_evaluation
from pipeline.stages.order import stages_of
from pipeline.stages.training import layer_choice, trainings_of

ASSUMED_PEAK_FLOPS = 989e12
"""Dense bf16 peak of one H100 or H200 (NVIDIA's datasheet)."""
ASSUMED_MFU = 0.4
"""Share of the peak that the estimate of GPU-hours takes for granted."""


@dataclass(frozen=True)
class Plan:
    """The numbers of a run before it runs."""

    name: str
    stages: dict[str, str]
    shape: ModelShape
    shape_from: str
    padding: str
    """What is padded at the recipe's TP degree; empty where everything divides."""
    tensor_parallel: int
    training: ResolvedTraining
    """With numbers in place of auto."""
    chosen_for: str
    """What auto was resolved for; empty where nothing is auto."""
    layers: LayerChoice
    """What it computes with, and why."""
    steps: int
    tokens_per_step: int
    tokens: int
    epochs: float | None
    """Times that training reads the data; None where the data are all that the sources hold."""
    trainings: int
    memory: TrainingMemory
    evaluation: EvaluationPlan
    gpu_hours: float
    disk: dict[str, int]
    unchecked: list[str]

    @property
    def gpus(self) -> int:
        return self.tensor_parallel * self.training.data_parallel

    @property
    def gpu_hours_of_training(self) -> float:
        """Of one training, where the control is another."""
        return self.gpu_hours / self.trainings

    def as_dict(self) -> dict[str, Any]:
        """For programs: bytes are bytes, tokens are tokens."""
        return {
            "name": self.name,
            "stages": self.stages,
            "shape_from": self.shape_from,
            "padding": self.padding,
            "gpus": self.gpus,
            "steps": self.steps,
            "tokens_per_step": self.tokens_per_step,
            "tokens": self.tokens,
            "epochs": self.epochs,
            "trainings": self.trainings,
            "gpu_hours": self.gpu_hours,
            "tensor_parallel": self.tensor_parallel,
            "data_parallel": self.training.data_parallel,
            "micro_batch": self.training.micro_batch,
            "chosen_for": self.chosen_for,
            "layers": asdict(self.layers),
            "shape": self.shape.model_dump(),
            "parameters": self.shape.parameters,
            "memory_per_gpu": {**asdict(self.memory), "total": self.memory.total},
            "evaluation_memory": self.evaluation.as_dict(),
            "assumptions": {"peak_flops_per_gpu": ASSUMED_PEAK_FLOPS, "mfu": ASSUMED_MFU},
            "disk": self.disk,
            "unchecked": self.unchecked,
        }

    def as_text(self) -> str:
        """For people."""
        shape, training = self.shape, self.training
        rows = training.batch // training.data_parallel
        recomputed = "layers recomputed" if training.recompute == "full" else "without recomputation"
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in asdict(self.memory).items())
        disk = ", ".join(f"{name} {size / GIB:.1f}" for name, size in self.disk.items())
        trainings = " (recalibration and control)" if self.trainings == 2 else ""
        epochs = "" if self.epochs is None else f", {self.epochs:.2f} epochs of the data"
        lines = [
            f"run           {self.name}",
            f"model         {shape.parameters:,} parameters, {shape.layers} layers, {shape.heads} query and "
            f"{shape.kv_heads} KV heads, context {shape.context} ({self.shape_from})",
            *([f"padding       {self.padding}"] if self.padding else []),
            f"stages        {', '.join(f'{name}: {state}' for name, state in self.stages.items())}",
            f"training      {self.steps:,} steps x {self.tokens_per_step:,} tokens = {self.tokens:,} tokens{trainings}"
            f"{epochs}",
            f"GPUs          {self.gpus} (TP {self.tensor_parallel} x DP {training.data_parallel})",
            f"micro batch   {training.micro_batch} of {rows} rows per step and rank"
            + (f" (auto, {self.chosen_for})" if self.chosen_for else ""),
            f"layers        {self.layers}",
            f"memory/GPU    {self.memory.total / GIB:.1f} GiB estimated (GiB: {parts}), {recomputed}",
            f"evaluation    {self.evaluation.as_text()}",
            f"GPU-hours     {self.gpu_hours:,.1f} estimated at {ASSUMED_MFU:.0%} of {ASSUMED_PEAK_FLOPS / 1e12:.0f} "
            "TFLOP/s per GPU",
            f"disk          {sum(self.disk.values()) / GIB:.1f} GiB (GiB: {disk})",
        ]
        if self.evaluation.warning:
            lines.append(f"warning       {self.evaluation.warning}")
        return "\n".join(lines + [f"not checked   {what}" for what in self.unchecked])


def make_plan(recipe: Recipe, slots: int = 0) -> Plan:
    """Checks all that can be checked on this machine, and computes the numbers. Nothing is written.

    slots: GPUs of the cluster that is planned for; 0: this machine.

    Raises: RecipeError, SurgeryError, DataError or EvaluationError for what cannot work.
    """
    described, shape_from = plan_shape(recipe.model)
    source = with_trained_context(recipe, described)
    check_shapes(recipe, source)
    shape = with_qk_norm(source, recipe.surgery.qk_norm, recipe.model.path)
    length, tensor_parallel = recipe.data.row_length, recipe.surgery.tensor_parallel
    training, chosen_for = resolved(recipe, shape, slots)
    here = Path(recipe.model.path).is_dir()
    if here:
        check_recipe(recipe, [stage for stage in stages_of(recipe) if not is_complete(stage, recipe)])
    steps = training.steps(length)
    tokens = steps * training.batch * length
    trainings = len(trainings_of(recipe))
    flops = trainings * training_flops(shape, tokens=tokens, length=length)
    return Plan(
        name=recipe.name,
        stages=stage_states(recipe),
        shape=shape,
        shape_from=shape_from,
        padding=shape.padding(tensor_parallel),
        tensor_parallel=tensor_parallel,
        training=training,
        chosen_for=chosen_for,
        layers=layer_choice(recipe, source),
        steps=steps,
        tokens_per_step=training.batch * length,
        tokens=tokens,
        epochs=tokens / recipe.data.tokens if recipe.data.tokens else None,
        trainings=trainings,
        memory=estimate(training, shape, tensor_parallel, length),
        evaluation=plan_evaluation(recipe, shape),
        gpu_hours=flops / (ASSUMED_PEAK_FLOPS * ASSUMED_MFU) / 3600,
        disk=disk_bytes(recipe, shape, tokens),
        unchecked=[] if here else [f"{recipe.model.path} is not on this machine: its tensors, tokenizer and documents"],
    )


def resolved(recipe: Recipe, shape: ModelShape, slots: int) -> tuple[ResolvedTraining, str]:
    """The training with numbers in place of auto, and what they were chosen for.

    A machine without GPUs is taken for one that only plans: a GPU of `ASSUMED_MEMORY` per TP rank is assumed. Those of
    a cluster (`slots`) are assumed to be of that size too.
    """
    import torch

    ranks = recipe.surgery.tensor_parallel
    here = 0 if slots else torch.cuda.device_count()
    gpus, memory_bytes = (here, device_memory()) if here else (slots or ranks, ASSUMED_MEMORY)
    training = resolve(
        recipe.recalibration,
        shape,
        tensor_parallel=ranks,
        row_length=recipe.data.row_length,
        slots=gpus,
        memory_bytes=memory_bytes,
    )
    if training.is_as_given(recipe.recalibration):
        return training, ""
    size = f"{memory_bytes / 1e9:.0f} GB"
    machine = f"for {here} GPUs of {size} here" if here else f"for GPUs of {size}, assumed since none is here"
    machine = f"for {slots} GPUs of the cluster, assumed to have {size}" if slots else machine
    return training, machine


def stage_states(recipe: Recipe) -> dict[str, str]:
    """Every stage of the recipe with what its manifest says."""
    states = {}
    for stage in stages_of(recipe):
        manifest = Manifest.load(recipe.folder / stage.name)
        states[stage.name] = "complete" if manifest else "to do"
    return states


def disk_bytes(recipe: Recipe, shape: ModelShape, tokens: int) -> dict[str, int]:
    """What the run's folder will hold, by what it is; trainings add up. tokens: of one training."""
    sizes: dict[str, int] = {}
    for stage in stages_of(recipe):
        for name, size in stage.disk_bytes(recipe, shape, tokens).items():
            sizes[name] = sizes.get(name, 0) + size
    return sizes
