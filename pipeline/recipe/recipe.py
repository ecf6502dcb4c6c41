"""The recipe: one YAML file that says everything about a run."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from data_prep.config import DataConfig
from eval.config import EvaluationConfig
from model_surgery.config import ExportConfig, SurgeryConfig
from pipeline.errors import RecipeError
from pipeline.recipe.recalibration import RecalibrationConfig
from pipeline.recipe.yaml_files import other_names, parse_yaml, read_yaml, validated


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelConfig(_Section):
    """The checkpoint that the run starts from."""

    path: str = Field(description="Hugging Face model folder, or a Hub id such as HuggingFaceTB/SmolLM-360M")
    revision: str | None = Field(None, description="Hub revision (branch, tag or commit)")
    random_seed: int | None = Field(
        None,
        ge=0,
        lt=2**32,
        description="training from scratch: draw the weights from this seed; of path only config.json and tokenizer "
        "are read, and the context becomes data.row_length; null: the weights of path",
    )


class ReportConfig(_Section):
    """What the report page says besides the run's numbers."""

    title: str | None = Field(None, description="headline of the page; default: the run's name")
    notes: str = Field("", description="one paragraph under the headline")
    published: Path | None = Field(
        None,
        description="CSV of published numbers to show beside the run's: model, source, variant, task, context_factor, "
        "value (a share from 0 to 1; a loss in nats per token), and metric where a task has several",
    )
    published_model: str | None = Field(
        None, description="model whose rows are shown, case-insensitive; default: the last part of model.path"
    )


class Recipe(_Section):
    """Everything about a run; relative paths are relative to the folder in which the command runs."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run and of its folder")
    runs_dir: str = Field("runs", description="folder in which run folders are made")
    model: ModelConfig = Field(description="source checkpoint")
    data: DataConfig = Field(description="documents and how they become training rows")
    surgery: SurgeryConfig = Field(default_factory=SurgeryConfig, description="cut into a tensor-parallel layout")
    recalibration: RecalibrationConfig = Field(description="training without positional embeddings")
    export: ExportConfig = Field(default_factory=ExportConfig, description="back to a Hugging Face folder")
    evaluation: EvaluationConfig = Field(default_factory=EvaluationConfig, description="what is scored")
    report: ReportConfig = Field(default_factory=ReportConfig, description="the HTML page")

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs_dir) / self.name


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe and applies `dotted.path=yaml value` overrides.

    Raises: RecipeError naming the file, the field, the value and the nearest valid choice.
    """
    raw = read_yaml(path, "recipe")
    for override in overrides:
        apply_override(raw, override)
    return validated(Recipe, raw, path)


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Sets one dotted path in the raw recipe; list items are addressed by number (data.sources.0.path=...).

    A field may be given under an old name, whichever of its names the file has.

    Raises: RecipeError if the override has no '=', its value is not YAML, or its path runs through a plain value.
    """
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"override {override!r}: write section.field=value, such as recalibration.lr=3e-4")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML") from error
    keys = dotted.split(".")
    target: Any = raw
    for depth, key in enumerate(keys[:-1], 1):
        if isinstance(target, list):
            target = _list_item(target, key, override)
        else:
            target = target.setdefault(_name_in_file(target, keys[:depth]), {})
        if not isinstance(target, dict | list):
            raise RecipeError(f"override {override!r}: {key} is a plain value and has no fields")
    if isinstance(target, list):
        _list_item(target, keys[-1], override)
        target[int(keys[-1])] = value
    else:
        target[_name_in_file(target, keys)] = value


def _name_in_file(section: dict[str, Any], keys: list[str]) -> str:
    """The name under which the section has the field at the path `keys`; the path's own where it has it under none."""
    if keys[-1] in section:
        return keys[-1]
    location = tuple(int(key) if key.isdecimal() else key for key in keys)
    return next((name for name in other_names(Recipe, location) if name in section), keys[-1])


def _list_item(items: list[Any], key: str, override: str) -> Any:
    if not key.isdecimal() or int(key) >= len(items):
        raise RecipeError(f"override {override!r}: {key!r} is not one of the list's items 0 to {len(items) - 1}")
    return items[int(key)]


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe as YAML, atomically."""
    from foundation.files import write_text

    write_text(path, as_yaml(recipe))


def as_yaml(recipe: Recipe) -> str:
    """The resolved recipe, every field under its present name."""
    return yaml.safe_dump(recipe.model_dump(mode="json", by_alias=False), sort_keys=False)
