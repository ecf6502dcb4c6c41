"""The recipe: one YAML file that says everything about a run."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.config import DataConfig
from eval.config import EvaluationConfig
from model_surgery.config import ExportConfig, SurgeryConfig
from pipeline.errors import RecipeError
from pipeline.recalibration.config import RecalibrationConfig


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


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of its version 1.2 (20e9 and 3e-4 are text to PyYAML), and no key twice in a mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:  # PyYAML would take the last one and say nothing
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """Plain values, lists and mappings of a YAML text."""
    return yaml.load(text, _Loader)  # a subclass of SafeLoader


def load_recipe(path: Path, overrides: tuple[str, ...] = ()) -> Recipe:
    """Reads a recipe and applies `dotted.path=yaml value` overrides.

    Raises: RecipeError naming the file, the field, the value and the nearest valid choice.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the recipe: {error.strerror}") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: of the encoding, or a date such as 2024-99-99
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of sections, this is {type(raw).__name__}")
    for override in overrides:
        apply_override(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe(error)}") from error


def apply_override(raw: dict[str, Any], override: str) -> None:
    """Sets one dotted path in the raw recipe; list items are addressed by number (data.sources.0.path=...).

    Raises: RecipeError if the override has no '=', its value is not YAML, or its path runs through a plain value.
    """
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise RecipeError(f"override {override!r}: write section.field=value, such as recalibration.lr=3e-4")
    try:
        value = parse_yaml(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"override {override!r}: the value is not valid YAML") from error
    *path, last = dotted.split(".")
    target: Any = raw
    for key in path:
        target = _list_item(target, key, override) if isinstance(target, list) else target.setdefault(key, {})
        if not isinstance(target, dict | list):
            raise RecipeError(f"override {override!r}: {key} is a plain value and has no fields")
    if isinstance(target, list):
        _list_item(target, last, override)
        target[int(last)] = value
    else:
        target[last] = value


def _list_item(items: list[Any], key: str, override: str) -> Any:
    if not key.isdecimal() or int(key) >= len(items):
        raise RecipeError(f"override {override!r}: {key!r} is not one of the list's items 0 to {len(items) - 1}")
    return items[int(key)]


def describe(error: ValidationError) -> str:
    """The first problem of a validation as one line: field, value, what is allowed, nearest valid key or value."""
    problems = one_each(error.errors())
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or "recipe"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        known = fields_of(first["loc"][:-1])
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return f"{field}: unknown key; {hint}{more}"
    if first["type"] == "missing":
        return f"{field}: is required{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    shown = "" if isinstance(value, dict) else f" = {value!r}"
    return f"{field}{shown}: {message[0].lower()}{message[1:]}{nearest_word(first)}{more}"


def one_each(problems: Sequence[Any]) -> list[dict[str, Any]]:
    """The problems with one for every field: pydantic has one for each alternative of `int | Literal["auto"]`."""
    words = {one["loc"][:-1]: one for one in problems if one["loc"] and str(one["loc"][-1]).startswith("literal[")}
    found: dict[Any, dict[str, Any]] = {}
    for problem in problems:
        place = problem["loc"][:-1] if problem["loc"][:-1] in words else problem["loc"]
        if place in found and problem is words.get(place):
            message = f"{found[place]['msg']}, or {problem['ctx']['expected']}"
            found[place] = {**found[place], "msg": message, "ctx": problem["ctx"]}
        found.setdefault(place, {**problem, "loc": place})
    return list(found.values())


def nearest_word(problem: dict[str, Any]) -> str:
    """A hint at the nearest of the words that a field may be; empty where none is near, or it takes no words."""
    allowed = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(problem["input"]).lower(), allowed, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def fields_of(location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at `location` in a recipe; empty where there is no section."""
    model: Any = Recipe
    for part in location:
        if isinstance(part, int):
            continue
        model = _section_type(model.model_fields[part].annotation) if part in model.model_fields else None
        if model is None:
            return []
    return list(model.model_fields)


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as tuple[Model, ...] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_type, getattr(annotation, "__args__", ()))), None)


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Writes the resolved recipe as YAML, atomically."""
    from model_surgery.files import atomic_path

    with atomic_path(path) as temporary:
        temporary.write_text(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False), encoding="utf-8")
