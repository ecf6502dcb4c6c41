"""YAML files that people write: read strictly, and what is wrong with them in one line."""

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_origin

import yaml
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from pipeline.errors import RecipeError

Model = TypeVar("Model", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML with the numbers of its version 1.2, and no key twice in a mapping.

    To PyYAML, 20e9 and 3e-4 are text, and 24:00:00 is the number 86400.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:  # PyYAML would take the last one and say nothing
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"^[-+]?(0x[0-9a-fA-F_]+|\d[\d_]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(
        r"^[-+]?((\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+|\d[\d_]*\.\d*|\.\d+|\.inf|\.Inf|\.INF)$|^(\.nan|\.NaN|\.NAN)$"
    ),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Plain values, lists and mappings of a YAML text."""
    return yaml.load(text, _Loader)  # a subclass of SafeLoader


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The mapping that a file holds; `what` it is stands in errors.

    Raises: RecipeError naming the file.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"{path}: cannot read the {what}: {error.strerror}") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: of the encoding, or a date such as 2024-99-99
        raise RecipeError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise RecipeError(f"{path}: a {what} is a mapping of sections, this is {type(raw).__name__}")
    return raw


def validated(model: type[Model], raw: dict[str, Any], path: Path) -> Model:
    """The model of what was read from `path`.

    Raises: RecipeError naming the file, the field, the value and the nearest valid choice.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise RecipeError(f"{path}: {describe(error, model)}") from error


def describe(error: ValidationError, root: type[BaseModel]) -> str:
    """The first problem of a validation as one line: field, value, what is allowed, nearest valid key or value."""
    problems = one_each(error.errors())
    first = problems[0]
    field = ".".join(str(part) for part in first["loc"]) or "the whole"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"{field}: unknown key; {known_key(root, first['loc'])}{more}"
    if first["type"] == "missing":
        return f"{field}: is required{more}"
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"]
    shown = "" if isinstance(value, dict) else f" = {value!r}"
    return f"{field}{shown}: {message[0].lower()}{message[1:]}{nearest_word(first)}{more}"


def one_each(problems: Sequence[Any]) -> list[dict[str, Any]]:
    """The problems with one for every field: pydantic has one for each alternative of `int | Literal["auto"]`."""
    words: dict[Any, dict[str, Any]] = {
        problem["loc"][:-1]: problem
        for problem in problems
        if problem["loc"] and str(problem["loc"][-1]).startswith("literal[")
    }
    of_field: dict[Any, dict[str, Any]] = {}
    for problem in problems:
        place = problem["loc"][:-1] if problem["loc"][:-1] in words else problem["loc"]
        is_word = place in words and words[place] is problem
        if place in of_field and is_word:
            message = f"{of_field[place]['msg']}, or {problem['ctx']['expected']}"
            of_field[place] = {**of_field[place], "msg": message, "ctx": problem["ctx"]}
        of_field.setdefault(place, {**problem, "loc": place})
    return list(of_field.values())


def nearest_word(problem: dict[str, Any]) -> str:
    """A hint at the nearest of the words that a field may be; empty where none is near, or it takes no words."""
    allowed = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    near = difflib.get_close_matches(str(problem["input"]).lower(), allowed, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def known_key(root: type[BaseModel], location: tuple[int | str, ...]) -> str:
    """A hint at the nearest key, old names too, to the unknown one at `location`; where none is near, all new names."""
    section = section_at(root, location[:-1])
    near = difflib.get_close_matches(str(location[-1]), fields_by_name(section) if section else (), n=1)
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(fields_of(root, location[:-1]))}"


def fields_of(root: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the section at `location` below `root`; empty where there is no section."""
    section = section_at(root, location)
    return list(section.model_fields) if section else []


def other_names(root: type[BaseModel], location: tuple[int | str, ...]) -> set[str]:
    """The other names under which the field at `location` below `root` is read: its new one, or old ones."""
    section = section_at(root, location[:-1])
    fields = fields_by_name(section) if section else {}
    key = str(location[-1])
    return {name for name, field in fields.items() if field is fields.get(key)} - {key}


def fields_by_name(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """The fields of a section, each under every name that it is read under."""
    fields: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        choices = field.validation_alias.choices if isinstance(field.validation_alias, AliasChoices) else []
        fields |= dict.fromkeys([name, *(choice for choice in choices if isinstance(choice, str))], field)
    return fields


def section_at(root: type[BaseModel], location: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model of the section at `location` below `root`; None where there is no section."""
    model = root
    is_free = False  # whether the next part is a key of a mapping
    for part in location:
        if isinstance(part, int) or is_free:
            is_free = False
            continue
        field = fields_by_name(model).get(part)
        section = _section_type(field.annotation) if field is not None else None
        if field is None or section is None:
            return None
        model, is_free = section, get_origin(field.annotation) is dict
    return model


def _section_type(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as tuple[Model, ...] or Model | None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_type, getattr(annotation, "__args__", ()))), None)
