"""Evaluation: scores of the exported model and of its rivals."""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from eval.config import EvaluationConfig
from eval.device import device_bytes
from eval.memory import EvaluationMemory, Sizes, evaluation_memory, ways_out
from model_surgery.shape import ModelShape
from pipeline.errors import RecipeError
from pipeline.launch.devices import ASSUMED_MEMORY
from pipeline.launch.machines import Machines
from pipeline.recipe.recipe import Recipe
from pipeline.runs.folder import explained_full_run_disk, identify, is_complete, mark_begun
from pipeline.runs.manifest import Manifest
from pipeline.runs.stage import ArrayStage
from pipeline.stages.data import DataStage, tokenizer_folder, validation_prefixes
from pipeline.stages.export import CONTROL_EXPORT, DROPE_EXPORT, ExportStage
from pipeline.stages.surgery import model_fingerprint

if TYPE_CHECKING:
    from eval.models import Models

log = logging.getLogger(__name__)


class EvaluationStage(ArrayStage):
    """The evaluation, whole or as tasks that each take a share of the units variant x task x length."""

    name = "evaluation"
    help = "score the exported model and its RoPE-scaled rivals"
    resumes = True
    scratch = ("units",)
    settings_in_recipes = MappingProxyType({"lengths": "context_factors"})
    merge_resources = "report"  # putting scores together needs no GPU, and a partition of GPUs may refuse such jobs

    def needs(self, recipe: Recipe) -> tuple[str, ...]:
        return (DataStage.name, ExportStage.name)

    def config(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.evaluation.model_dump(mode="json")

    def sources(self, recipe: Recipe) -> dict[str, str]:
        return model_fingerprint(recipe) | task_fingerprints(recipe.evaluation)

    def check_settings(self, recipe: Recipe, shape: ModelShape) -> None:
        from pipeline.recipe.random_model import check_untrained

        if "control" in recipe.evaluation.variants and not recipe.recalibration.control:
            raise RecipeError("evaluation.variants has control, which needs recalibration.control = true")
        check_untrained(recipe)

    def check(self, recipe: Recipe, shape: ModelShape) -> None:
        check_task_data(recipe.evaluation, tokenizer_folder(recipe), shape.context)

    def check_inputs(self, recipe: Recipe) -> None:
        from eval import run as evaluation

        evaluation.check(recipe.evaluation, evaluated_models(recipe, recipe.folder))

    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        from eval import run as evaluation

        results = evaluation.run(recipe.evaluation, models=evaluated_models(recipe, run_dir), out_dir=stage_dir)
        return {"scores": len(results.scores), "seconds": results.seconds}

    def most_tasks(self, recipe: Recipe) -> int:
        from eval.units import plan_units

        return len(plan_units(recipe.evaluation))

    def run_task(self, recipe: Recipe, task: int, of: int, check: Callable[[], None]) -> None:
        from eval import run as evaluation

        if is_complete(self, recipe):
            log.info("evaluation is complete; nothing is left for task %d of %d", task, of)
            return
        stage_dir = recipe.folder / self.name
        mark_begun(identify(self, recipe), stage_dir)
        models = evaluated_models(recipe, recipe.folder)
        with explained_full_run_disk(stage_dir):
            done = evaluation.run_task(recipe.evaluation, models=models, out_dir=stage_dir, task=task, of=of)
        log.info("task %d of %d is done: %d units", task, of, done)

    def undone_tasks(self, recipe: Recipe, of: int) -> list[int]:
        from eval import run as evaluation

        stage_dir = recipe.folder / self.name
        if not stage_dir.is_dir() or not all(Manifest.load(recipe.folder / name) for name in self.needs(recipe)):
            return list(range(of))
        models = evaluated_models(recipe, recipe.folder)
        return evaluation.undone_tasks(recipe.evaluation, models=models, out_dir=stage_dir, of=of)

    def check_merge(self, recipe: Recipe) -> None:
        from eval import run as evaluation

        if not is_complete(self, recipe):
            identify(self, recipe)
            models = evaluated_models(recipe, recipe.folder)
            evaluation.check_merge(recipe.evaluation, models=models, out_dir=recipe.folder / self.name)

    def progress(self, stage_dir: Path) -> int:
        """Units that are scored, and bytes of the answers to the others."""
        units = stage_dir / "units"
        return sum(1 for _ in units.glob("*.json")) + sum(path.stat().st_size for path in units.glob("*.answers"))


def evaluated_models(recipe: Recipe, run_dir: Path) -> "Models":
    """What the evaluation scores: the source, the exports, the held-out shards."""
    from eval.models import Models
    from pipeline.recipe.random_model import source_folder

    exports = run_dir / ExportStage.name
    return Models(
        source=source_folder(recipe),
        drope=exports / DROPE_EXPORT,
        control=exports / CONTROL_EXPORT if recipe.recalibration.control else None,
        # The export's tokenizer gives the ids of the training rows also where transformers would build another one
        # from the source's folder (see model_surgery.export.tokenizer).
        tokenizer=exports / DROPE_EXPORT,
        validation=validation_prefixes(run_dir),
    )


def task_fingerprints(config: EvaluationConfig) -> dict[str, str]:
    """Of the files that tasks are made from, by what they are."""
    from model_surgery.files import fingerprint_files

    files = {f"task {task.name}": task.path for task in config.harness if task.path}
    if config.niah and config.niah.essays:
        files["essays"] = config.niah.essays
    if config.longbench and config.longbench.folder:
        files |= {f"task {name}": config.longbench.folder / f"{name}.jsonl" for name in config.longbench.tasks}
    if config.recall:
        words = {"recall keys": config.recall.keys, "recall values": config.recall.values}
        files |= {name: path for name, path in words.items() if isinstance(path, Path)}
    return {name: fingerprint_files([path]) if path.is_file() else "no such file" for name, path in files.items()}


def check_task_data(config: EvaluationConfig, tokenizer: Path, context: int) -> None:
    """The data of the evaluation's tasks, which would otherwise be opened only when the training is over.

    Raises: EvaluationError.
    """
    from eval.models import load_tokenizer
    from eval.tasks.data import check_needles, read_task_data
    from eval.tasks.recall_samples import load_words

    data = read_task_data(config)
    if config.niah is not None:
        check_needles(config.without(data.missing), data.essays, load_tokenizer(tokenizer), context)
    if config.recall is not None:
        load_words(config.recall)


@dataclass(frozen=True)
class EvaluationPlan:
    """device: where it runs, in words. available: bytes there. ways_out: what would make it take less."""

    memory: EvaluationMemory
    device: str
    available: int
    ways_out: str

    @property
    def fits(self) -> bool:
        return self.memory.total <= self.available

    @property
    def warning(self) -> str:
        """What stands in the way; empty where it fits."""
        if self.fits:
            return ""
        return (
            f"the evaluation would be refused, as it takes more than {self.device}: run it on a larger machine, or "
            f"take {self.ways_out}"
        )

    def as_dict(self) -> dict[str, Any]:
        """For programs, in bytes."""
        return {
            **asdict(self.memory),
            "total": self.memory.total,
            "available": self.available,
            "fits": self.fits,
        }

    def as_text(self) -> str:
        """For people, in one line."""
        return f"{self.memory} (GiB, estimated); {'fits into' if self.fits else 'more than'} {self.device}"


def plan_evaluation(recipe: Recipe, shape: ModelShape) -> EvaluationPlan:
    """Of a model of this `shape`; as for training, a GPU is assumed where none is here."""
    sizes = Sizes(
        layers=shape.layers,
        hidden=shape.hidden,
        ffn=shape.ffn,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        vocab=shape.vocab,
        tied=shape.tied,
    )
    memory = evaluation_memory(sizes, recipe.evaluation, shape.context)
    device, available = _planned_device(recipe)
    return EvaluationPlan(memory, device, available, ways_out(memory, recipe.evaluation))


def _planned_device(recipe: Recipe) -> tuple[str, int]:
    import torch

    if recipe.evaluation.device == "cpu":
        size = device_bytes(torch.device("cpu"))
        return f"this machine's {size / 1e9:.0f} GB", size
    if torch.cuda.device_count():
        size = device_bytes(torch.device("cuda"))
        return f"the GPU of {size / 1e9:.0f} GB here", size
    return f"a GPU of {ASSUMED_MEMORY / 1e9:.0f} GB, assumed since none is here", ASSUMED_MEMORY
