"""Data: documents become memory-mapped shards of token ids."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data_prep import prepare
from model_surgery.shape import ModelShape, read_shape
from pipeline.errors import RecipeError
from pipeline.launch.machines import Machines
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recipe import Recipe
from pipeline.runs.folder import begin_run, explained_full_run_disk, is_complete
from pipeline.runs.manifest import Manifest
from pipeline.runs.stage import ArrayStage

log = logging.getLogger(__name__)

NO_DATA_SETTINGS = {"backend", "check_fraction", "max_rejected_fraction", "workers"}
"""Fields of the data section that the shards do not depend on: who tokenizes, and how far it is trusted."""
MOST_TASKS = 1_000_000
"""How many pieces there are is known only once the sources are read."""


class DataStage(ArrayStage):
    """Data preparation, whole or as tasks that each take a share of the pieces."""

    name = "data"
    help = "tokenize the documents into memory-mapped shards"
    resumes = True
    scratch = ("pieces", "lineage.json")
    keeps = ("shards",)
    guards_progress = True
    merge_finishes = True

    def config(self, recipe: Recipe) -> dict[str, Any]:
        return recipe.data.model_dump(mode="json", exclude=NO_DATA_SETTINGS)

    def sources(self, recipe: Recipe) -> dict[str, str]:
        from data_prep.reading.fingerprint import fingerprint
        from data_prep.tokenizers.reference import load_tokenizer

        files = {
            f"source {number} ({source.label})": fingerprint(source)
            for number, source in enumerate(recipe.data.sources)
        }
        return {**files, "tokenizer": load_tokenizer(tokenizer_path(recipe)).digest}

    def check_settings(self, recipe: Recipe, shape: ModelShape) -> None:
        if recipe.data.row_length > shape.context:
            raise RecipeError(
                f"data.row_length = {recipe.data.row_length}: {recipe.model.path} has a context of {shape.context} "
                "tokens; recalibration trains at the original context length or below"
            )
        if not any(recipe.data.held_out_fraction(source) for source in recipe.data.sources):
            raise RecipeError(
                "data.validation_fraction = 0: validation and evaluation need held-out documents; use 0.01, or a "
                "source with split: validation"
            )

    def check(self, recipe: Recipe, shape: ModelShape) -> None:
        prepare.check(recipe.data, tokenizer=tokenizer_path(recipe), model_vocab_size=shape.vocab)
        check_tokenizer(recipe)

    def run(self, recipe: Recipe, run_dir: Path, stage_dir: Path, machines: Machines) -> dict[str, Any]:
        from data_prep.lineage import lineage_summary
        from eval.held_out import check_held_out
        from pipeline.recipe.random_model import source_shape

        shape = source_shape(recipe)
        shards = prepare.run(
            recipe.data,
            tokenizer=tokenizer_path(recipe),
            model_vocab_size=shape.vocab,
            out_dir=stage_dir,
            workers=recipe.data.workers,
        )
        parts = {
            part: {
                "documents": sum(getattr(source, part).documents for source in shards.sources),
                "tokens": sum(getattr(source, part).tokens for source in shards.sources),
            }
            for part in ("train", "validation")
        }
        # Now, not when training is over.
        check_held_out(recipe.evaluation, shape.context, parts["validation"]["tokens"])
        counts = {source.name: source.counts.model_dump() for source in shards.sources}
        return {**parts, "digest": shards.digest, "documents": counts, "encoders": lineage_summary(stage_dir)}

    def most_tasks(self, recipe: Recipe) -> int:
        return MOST_TASKS

    def run_task(self, recipe: Recipe, task: int, of: int, check: Callable[[], None]) -> None:
        stage_dir = recipe.folder / self.name
        # Only a complete stage is compared with its inputs here: that reads from all files, and the tasks may be many.
        if Manifest.load(stage_dir) and is_complete(self, recipe):
            log.info("data is complete; nothing is left for task %d of %d", task, of)
            return
        if not prepare.is_planned(stage_dir):
            check()
        begin_run(recipe)
        stage_dir.mkdir(exist_ok=True)
        with explained_full_run_disk(stage_dir):
            done = prepare.work(
                recipe.data,
                tokenizer=tokenizer_path(recipe),
                model_vocab_size=read_shape(resolve_model(recipe.model)).vocab,
                out_dir=stage_dir,
                task=task,
                of=of,
                workers=recipe.data.workers,
            )
        log.info("task %d of %d is done: %d pieces", task, of, done)

    def undone_tasks(self, recipe: Recipe, of: int) -> list[int]:
        stage_dir = recipe.folder / self.name
        return prepare.undone_tasks(recipe.data, tokenizer=tokenizer_path(recipe), out_dir=stage_dir, of=of)

    def check_merge(self, recipe: Recipe) -> None:
        if not is_complete(self, recipe):
            prepare.check_merge(recipe.data, tokenizer=tokenizer_path(recipe), out_dir=recipe.folder / self.name)

    def progress(self, stage_dir: Path) -> int:
        """Pieces that are done."""
        return sum(1 for _ in (stage_dir / "pieces").glob("*.json"))

    def disk_bytes(self, recipe: Recipe, shape: ModelShape, tokens: int) -> dict[str, int]:
        from data_prep.shards import TOKEN_TYPES, token_type

        return {"shards": (recipe.data.tokens or tokens) * TOKEN_TYPES[token_type(shape.vocab)]}


def tokenizer_path(recipe: Recipe) -> Path:
    """The tokenizer that documents are encoded with: the recipe's, else the model's own."""
    return Path(recipe.data.tokenizer) if recipe.data.tokenizer else resolve_model(recipe.model)


def tokenizer_folder(recipe: Recipe) -> Path:
    """The folder of that tokenizer, whose files the export carries."""
    path = tokenizer_path(recipe)
    return path if path.is_dir() else path.parent


def check_tokenizer(recipe: Recipe) -> None:
    """The export carries the files of the tokenizer's folder; they must be those that the documents are encoded with.

    Raises: RecipeError if the recipe names a file that is not what its folder is loaded as.
    """
    from data_prep.tokenizers.reference import load_tokenizer

    path = tokenizer_path(recipe)
    if path.is_dir():
        return
    known = path.name in ("tokenizer.json", "tokenizer.model")
    if not known or load_tokenizer(path.parent).digest != load_tokenizer(path).digest:
        raise RecipeError(
            f"data.tokenizer = {path}: the exported model could not carry this file as its tokenizer; put it into a "
            "folder without another tokenizer, as tokenizer.json or tokenizer.model"
        )


def validation_prefixes(run_dir: Path) -> tuple[Path, ...]:
    """Paths of the held-out shards without their endings; the data stage must be complete."""
    from data_prep.artifact import ShardSet

    shards = ShardSet.load(run_dir / DataStage.name)
    return tuple(run_dir / DataStage.name / shard.prefix for part in shards.sources for shard in part.validation.shards)
