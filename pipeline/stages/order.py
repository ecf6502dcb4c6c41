"""The stages of a run, in order: what each needs, what identifies it, and the function that does it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.launch.machines import Machines
from pipeline.recipe.model_source import resolve_model
from pipeline.recipe.recalibration import OPERATIONAL
from pipeline.recipe.recipe import Recipe


@dataclass(frozen=True)
class Stage:
    """One stage. `run(recipe, folder of the run, folder of the stage, machines)` does it; facts for the manifest."""

    name: str
    help: str
    needs: tuple[str, ...]
    config: Callable[[Recipe], dict[str, Any]]
    run: Callable[[Recipe, Path, Path, Machines], dict[str, Any]]
    needs_also: Callable[[Recipe], tuple[str, ...]] = lambda recipe: ()
    """What it needs only with some settings."""
    sources: Callable[[Recipe], dict[str, str]] = lambda recipe: {}
    """Fingerprints of what lies outside the run's folder."""
    wanted: Callable[[Recipe], bool] = lambda recipe: True
    resumes: bool = False
    """Whether a stage that was cut off goes on with what is in its folder; the others begin anew."""
    keeps: tuple[str, ...] = ()
    """Folders of outputs that are progress too: a failure after they were made does not remove them."""
    guards_progress: bool = False
    """Whether it refuses by itself to go on with what was made with other settings."""
    scratch: tuple[str, ...] = ()
    """Folders and files below the stage's that are not its outputs."""


NO_DATA_SETTINGS = {"backend", "check_fraction", "max_rejected_fraction", "workers"}
"""Fields of the data section that the shards do not depend on."""


def _dump(section: Any) -> dict[str, Any]:
    return section.model_dump(mode="json")


def _training_config(recipe: Recipe) -> dict[str, Any]:
    """The settings that the trained weights depend on: ranks may change, a control may be added, and disk be freed."""
    return recipe.recalibration.model_dump(mode="json", exclude=set(OPERATIONAL))


def _surgery_config(recipe: Recipe) -> dict[str, Any]:
    """The settings that the whole tensors depend on: training takes a layout of any TP degree."""
    return recipe.surgery.model_dump(mode="json", exclude={"tensor_parallel"})


def _model_fingerprint(recipe: Recipe) -> dict[str, str]:
    from pipeline.recipe.random_model import source_fingerprint

    return {"model": source_fingerprint(recipe)}


def tokenizer_path(recipe: Recipe) -> Path:
    """The tokenizer that documents are encoded with: the recipe's, else the model's own."""
    return Path(recipe.data.tokenizer) if recipe.data.tokenizer else resolve_model(recipe.model)


def tokenizer_folder(recipe: Recipe) -> Path:
    """The folder of that tokenizer, whose files the export carries."""
    path = tokenizer_path(recipe)
    return path if path.is_dir() else path.parent


def _data_fingerprints(recipe: Recipe) -> dict[str, str]:
    from data_prep.reading.fingerprint import fingerprint
    from data_prep.tokenizers.reference import load_tokenizer

    files = {
        f"source {number} ({source.label})": fingerprint(source) for number, source in enumerate(recipe.data.sources)
    }
    return {**files, "tokenizer": load_tokenizer(tokenizer_path(recipe)).digest}


def _data_config(recipe: Recipe) -> dict[str, Any]:
    """The settings that the shards depend on; others say who tokenizes, and how far it is trusted."""
    return recipe.data.model_dump(mode="json", exclude=NO_DATA_SETTINGS)


def _run_data(recipe: Recipe, run: Path, out_dir: Path, machines: Machines) -> dict[str, Any]:
    from data_prep import prepare
    from data_prep.merge import lineage_summary
    from eval.checks import check_held_out
    from pipeline.recipe.random_model import source_shape

    shape = source_shape(recipe)
    shards = prepare.run(
        recipe.data,
        tokenizer=tokenizer_path(recipe),
        model_vocab_size=shape.vocab,
        out_dir=out_dir,
        workers=recipe.data.workers,
    )
    parts = {
        part: {
            "documents": sum(getattr(source, part).documents for source in shards.sources),
            "tokens": sum(getattr(source, part).tokens for source in shards.sources),
        }
        for part in ("train", "validation")
    }
    check_held_out(recipe.evaluation, shape.context, parts["validation"]["tokens"])  # now, not when training is over
    counts = {source.name: source.counts.model_dump() for source in shards.sources}
    return {**parts, "digest": shards.digest, "documents": counts, "encoders": lineage_summary(out_dir)}


def _run_surgery(recipe: Recipe, run: Path, out_dir: Path, machines: Machines) -> dict[str, Any]:
    from model_surgery import convert
    from pipeline.recipe.random_model import draw_source

    rows = _calibration_rows(recipe, run) if recipe.surgery.calibrates else None
    source = draw_source(recipe, tokenizer_folder(recipe))
    made = convert.run(recipe.surgery, source=source, out_dir=out_dir, rows=rows)
    return {
        "parameters": made.layout.shape.parameters,
        "padding": made.layout.shape.padding(made.layout.tensor_parallel),
        "layout_digest": made.layout.digest(),
        "verification": made.verification.facts() if made.verification else None,
        "calibration": made.calibration.facts() if made.calibration else None,
    }


def _calibration_rows(recipe: Recipe, run: Path) -> Any:
    """The first training rows as token ids, int64 [rows, row_length]."""
    import tempfile

    import torch

    from data_prep.artifact import ShardSet
    from data_prep.rows import build_rows

    count = recipe.surgery.calibration_rows
    with tempfile.TemporaryDirectory(prefix="drope-rows-") as cache:
        shards = ShardSet.load(run / "data")
        rows = build_rows(shards, run / "data", train_rows=count, validation_rows=0, cache_dir=Path(cache)).train
        return torch.stack([rows[index]["tokens"] for index in range(count)])


def _train(
    recipe: Recipe, position_embedding: Literal["none", "rope"], run: Path, out_dir: Path, machines: Machines
) -> dict[str, Any]:
    from pipeline.recalibration.run import run as train

    return train(
        recipe.recalibration,
        position_embedding,
        tensor_parallel=recipe.surgery.tensor_parallel,
        shards=run / "data",
        layout=run / "surgery",
        out_dir=out_dir,
        machines=machines,
    )


def _run_recalibration(recipe: Recipe, run: Path, out_dir: Path, machines: Machines) -> dict[str, Any]:
    return _train(recipe, recipe.recalibration.position_embedding, run, out_dir, machines)


def _run_control(recipe: Recipe, run: Path, out_dir: Path, machines: Machines) -> dict[str, Any]:
    return _train(recipe, "rope", run, out_dir, machines)


def _run_export(recipe: Recipe, run: Path, out_dir: Path, machines: Machines) -> dict[str, Any]:
    from model_surgery import export

    unscaled = recipe.export.model_copy(update={"softmax_scale": None})
    facts = {}
    for name, stage in exported_models(recipe).items():
        facts[name] = export.run(
            recipe.export if name == SCALED_EXPORT else unscaled,
            layout_dir=run / stage / "layout",
            source=resolve_model(recipe.model),
            tokenizer=tokenizer_folder(recipe),
            out_dir=out_dir / name,
            probe=run / stage / "probe.safetensors",
        )
    return facts


SCALED_EXPORT = "drope-scaled"
"""Folder below export/ of the model with export.softmax_scale; evaluation needs export/drope without any."""


def exported_models(recipe: Recipe) -> dict[str, str]:
    """Folder below export/ of every exported model, and the training stage that it comes from."""
    models = {"drope": "recalibration"}
    if recipe.export.softmax_scale:
        models[SCALED_EXPORT] = "recalibration"
    return models | ({"control": "control"} if recipe.recalibration.control else {})


def _run_evaluation(recipe: Recipe, run: Path, out_dir: Path, machines: Machines) -> dict[str, Any]:
    from eval import run as evaluation

    results = evaluation.run(recipe.evaluation, models=evaluated_models(recipe, run), out_dir=out_dir)
    return {"scores": len(results.scores), "seconds": results.seconds}


def evaluated_models(recipe: Recipe, run: Path) -> Any:
    """What the evaluation scores (an `eval.models.Models`): the source, the exports, the held-out shards."""
    from eval.models import Models
    from pipeline.recipe.random_model import source_folder

    return Models(
        source=source_folder(recipe),
        drope=run / "export" / "drope",
        control=run / "export" / "control" if recipe.recalibration.control else None,
        # The export's tokenizer gives the ids of the training rows also where transformers would build another one
        # from the source's folder (see model_surgery.export.tokenizer).
        tokenizer=run / "export" / "drope",
        validation=validation_prefixes(run),
    )


def validation_prefixes(run: Path) -> tuple[Path, ...]:
    """Paths of the held-out shards without their endings; the data stage must be complete."""
    from data_prep.artifact import ShardSet

    shards = ShardSet.load(run / "data")
    return tuple(run / "data" / shard.prefix for part in shards.sources for shard in part.validation.shards)


def _evaluation_fingerprints(recipe: Recipe) -> dict[str, str]:
    from model_surgery.files import fingerprint_files

    files = {f"task {task.name}": task.path for task in recipe.evaluation.harness if task.path}
    if niah := recipe.evaluation.niah:
        files |= {"essays": niah.essays} if niah.essays else {}
    if (longbench := recipe.evaluation.longbench) and longbench.folder:
        files |= {f"task {name}": longbench.folder / f"{name}.jsonl" for name in longbench.tasks}
    if recall := recipe.evaluation.recall:
        words = {"recall keys": recall.keys, "recall values": recall.values}
        files |= {name: path for name, path in words.items() if isinstance(path, Path)}
    found = {name: fingerprint_files([path]) if path.is_file() else "no such file" for name, path in files.items()}
    return _model_fingerprint(recipe) | found


def _run_report(recipe: Recipe, run: Path, out_dir: Path, machines: Machines) -> dict[str, Any]:
    from pipeline.report.page import write_report

    page = write_report(recipe, run, out_dir)
    return {"page": str(page.relative_to(run))}


def _report_fingerprints(recipe: Recipe) -> dict[str, str]:
    from model_surgery.files import fingerprint_files

    path = recipe.report.published
    if path is None:
        return {}
    return {"published": fingerprint_files([path]) if path.is_file() else "no such file"}


_TRAINING_SCRATCH = ("checkpoints", "tensorboard", "row-index")

STAGES = (
    Stage(
        "data",
        "tokenize the documents into memory-mapped shards",
        needs=(),
        config=_data_config,
        run=_run_data,
        sources=_data_fingerprints,
        resumes=True,
        scratch=("pieces", "lineage.json"),
        keeps=("shards",),
        guards_progress=True,
    ),
    Stage(
        "surgery",
        "drop the positional embeddings and cut the checkpoint into its tensor-parallel layout",
        needs=(),
        needs_also=lambda recipe: ("data",) if recipe.surgery.calibrates else (),
        config=_surgery_config,
        run=_run_surgery,
        sources=_model_fingerprint,
    ),
    Stage(
        "recalibration",
        "train without positional embeddings at the original context length",
        needs=("data", "surgery"),
        config=_training_config,
        run=_run_recalibration,
        resumes=True,
        scratch=_TRAINING_SCRATCH,
    ),
    Stage(
        "control",
        "train the same model with RoPE kept on the same rows, for comparison",
        needs=("data", "surgery"),
        config=_training_config,
        run=_run_control,
        wanted=lambda recipe: recipe.recalibration.control,
        resumes=True,
        scratch=_TRAINING_SCRATCH,
    ),
    Stage(
        "export",
        "write the trained weights as a Hugging Face folder for stock transformers",
        needs=("recalibration", "control"),
        config=lambda recipe: _dump(recipe.export),
        run=_run_export,
    ),
    Stage(
        "evaluation",
        "score the exported model and its RoPE-scaled rivals",
        needs=("data", "export"),
        config=lambda recipe: _dump(recipe.evaluation),
        run=_run_evaluation,
        sources=_evaluation_fingerprints,
        resumes=True,
        scratch=("units",),
    ),
    Stage(
        "report",
        "write one HTML page with the run's plots, tables and lineage",
        needs=("recalibration", "control", "evaluation"),
        config=lambda recipe: _dump(recipe.report),
        run=_run_report,
        sources=_report_fingerprints,
    ),
)


def stages_of(recipe: Recipe) -> list[Stage]:
    """The stages that this recipe has, in order."""
    return [stage for stage in STAGES if stage.wanted(recipe)]
