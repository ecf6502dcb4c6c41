"""Recipes: what is accepted, and what a refusal says."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from pydantic import AliasChoices, BaseModel, Field

from pipeline.errors import RecipeError
from pipeline.recipe import recipe as recipes
from pipeline.recipe import yaml_files
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.recipe.yaml_files import fields_of, parse_yaml

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_valid_and_named_as_its_file(path: Path) -> None:
    assert load_recipe(path).name == path.stem


def test_published_recipes_have_the_published_steps() -> None:
    steps = {}
    for name in ("smollm-360m", "smollm-1.7b", "llama2-7b"):
        recipe = load_recipe(RECIPES / f"{name}.yaml")
        steps[name] = (recipe.recalibration.steps(recipe.data.row_length), recipe.recalibration.lr)
    assert steps == {"smollm-360m": (120_000, 3e-4), "smollm-1.7b": (120_000, 3e-4), "llama2-7b": (5_000, 1e-4)}


def test_overrides_set_nested_fields_and_list_items(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe()
    overrides = (
        "recalibration.lr=2e-3",
        "data.sources.0.weight=2",
        "evaluation.context_factors=[1, 4]",
        "recalibration.tokens=1e4",
    )
    recipe = load_recipe(path, overrides)
    assert recipe.recalibration.lr == 2e-3
    assert recipe.data.sources[0].weight == 2
    assert recipe.evaluation.context_factors == (1, 4)
    assert recipe.recalibration.tokens == 10_000


@pytest.mark.parametrize("file", ["context_factors", "lengths"])
@pytest.mark.parametrize("override", ["context_factors", "lengths"])
def test_an_override_may_have_the_fields_old_name_and_the_file_too(
    write_recipe: Callable[..., Path], file: str, override: str
) -> None:
    path = write_recipe(evaluation={file: [1, 2], "niah": {file: [1, 2]}})
    recipe = load_recipe(path, (f"evaluation.{override}=[1, 4]", f"evaluation.niah.{override}=[1, 8]"))
    assert recipe.evaluation.context_factors == (1, 4)
    assert recipe.evaluation.niah is not None and recipe.evaluation.niah.context_factors == (1, 8)


@pytest.mark.parametrize("file", ["context_factors", "lengths"])
@pytest.mark.parametrize("override", ["context_factors", "lengths"])
def test_an_override_of_a_list_item_may_have_the_fields_old_name(
    write_recipe: Callable[..., Path], file: str, override: str
) -> None:
    path = write_recipe(evaluation={file: [2, 4], "niah": {file: [3, 4]}})
    recipe = load_recipe(path, (f"evaluation.{override}.0=1", f"evaluation.niah.{override}.1=8"))
    assert recipe.evaluation.context_factors == (1, 4)
    assert recipe.evaluation.niah is not None and recipe.evaluation.niah.context_factors == (3, 8)


def test_an_override_may_run_through_a_section_under_its_old_name(monkeypatch: pytest.MonkeyPatch) -> None:
    class Inner(BaseModel):
        rows: int = Field(validation_alias=AliasChoices("rows", "lines"))

    class Outer(BaseModel):
        part: Inner = Field(validation_alias=AliasChoices("part", "piece"))

    monkeypatch.setattr(recipes, "Recipe", Outer)
    raw = {"piece": {"lines": 1}}
    recipes.apply_override(raw, "part.rows=2")
    assert raw == {"piece": {"lines": 2}}
    recipes.apply_override(raw, "piece.rows=3")
    assert raw == {"piece": {"lines": 3}}


def test_a_field_under_both_names_is_refused(write_recipe: Callable[..., Path]) -> None:
    path = write_recipe(evaluation={"context_factors": [1, 2], "lengths": [1, 2]})
    with pytest.raises(
        RecipeError, match=r"recipe\.yaml: evaluation: lengths is the old name of context_factors; give"
    ):
        load_recipe(path)


def test_lengths_in_tokens_are_refused_with_what_to_write(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(), ("evaluation.context_factors=[2048, 4096]",))
    assert str(caught.value).endswith(
        "recipe.yaml: evaluation.context_factors = [2048, 4096]: context factors are multiples of the training context "
        "(2: twice its length), 64 at most; 4096 looks like a number of tokens"
    )


def test_the_resolved_recipe_has_the_new_name_and_is_the_same_recipe(
    write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(evaluation={"lengths": [1, 4], "niah": {"lengths": [2]}}))
    recipes.write_recipe(recipe, tmp_path / "resolved.yaml")
    evaluation = yaml.safe_load((tmp_path / "resolved.yaml").read_text())["evaluation"]
    assert evaluation["context_factors"] == [1, 4] and "lengths" not in evaluation
    assert evaluation["niah"]["context_factors"] == [2] and "lengths" not in evaluation["niah"]
    assert load_recipe(tmp_path / "resolved.yaml") == recipe


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert parse_yaml("[20e9, 3e-4, 1.5e3, -2E2, e9, '1e3']") == [20e9, 3e-4, 1500.0, -200.0, "e9", "1e3"]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("recalibration.tokns=5", ["recalibration.tokns", "unknown key", "did you mean tokens?"]),
        ("evaluation.lenghts=[1]", ["evaluation.lenghts", "unknown key", "did you mean lengths?"]),
        ("evaluation.context_factor=[1]", ["unknown key", "did you mean context_factors?"]),
        ("evaluation.nonsense=5", ["unknown key; known: variants, context_factors, batch_tokens,"]),
        ("nonsense=5", ["nonsense", "unknown key", "known:"]),
        ("recalibration.batch=ten", ["recalibration.batch = 'ten'", "integer"]),
        ("recalibration.zero_stage=4", ["recalibration.zero_stage = 4", "1, 2 or 3"]),
        ("recalibration.lr=-1", ["recalibration.lr = -1", "greater than 0"]),
        ("recalibration.batch=5", ["recalibration", "batch = 5", "micro_batch * data_parallel = 2", "use batch = 4"]),
        ("recalibration.schedule.kind=wsd", ["decay_steps"]),
        ("surgery.tensor_parallel=0", ["surgery.tensor_parallel = 0"]),
        ("data.sources=[]", ["data.sources"]),
        ("evaluation.variants=[rop]", ["evaluation.variants.0 = 'rop'", "'rope'", "did you mean rope?"]),
        ("evaluation.variants=[drope, YaRM]", ["evaluation.variants.1 = 'YaRM'", "or 'control'; did you mean yarn?"]),
        (
            "recalibration.precision=bf15",
            ["recalibration.precision = 'bf15'", "'fp32', 'bf16' or 'fp8'; did you mean bf16?"],
        ),
        ("data.sources.0.format=parket", ["data.sources.0.format = 'parket'", "did you mean parquet?"]),
        ("recalibration.micro_batch=aut", ["micro_batch = 'aut': ", "integer, or 'auto'; did you mean auto?"]),
        (
            "recalibration.micro_batch=0",
            ["recalibration.micro_batch = 0: input should be greater than or equal to 1, or 'auto'"],
        ),
        ("name=../escape", ["name = '../escape'"]),
        ("recalibration", ["section.field=value"]),
        ("recalibration.lr.x=1", ["lr is a plain value"]),
        ("data.sources.\u00b2.path=x", ["is not one of the list's items"]),
        ("name=2024-99-99", ["override 'name=2024-99-99'", "not valid YAML"]),
        ("data.sources.7.path=x", ["'7' is not one of the list's items 0 to 0"]),
    ],
)
def test_refusals_name_field_value_and_way_out(
    write_recipe: Callable[..., Path], override: str, parts: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(write_recipe(), (override,))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "this is list"),
        ("name: a\nname: b", "key 'name' stands twice"),
        ("", "this is NoneType"),
        ("name: 2024-99-99", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
    ],
)
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=part):
        load_recipe(path)


def test_missing_field_and_missing_file(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.path: is required"):
        load_recipe(write_recipe(model={}))
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")


def test_a_written_recipe_reads_back_equal(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe())
    resolved = tmp_path / "resolved.yaml"
    recipes.write_recipe(recipe, resolved)
    assert load_recipe(resolved) == recipe
    assert yaml.safe_load(resolved.read_text())["recalibration"]["weight_decay"] == 0.0


def test_every_field_says_what_it_is() -> None:
    def undescribed(section: type[BaseModel], prefix: str) -> list[str]:
        names = [prefix + name for name, field in section.model_fields.items() if not field.description]
        for name, field in section.model_fields.items():
            nested = yaml_files._section_type(field.annotation)
            names += undescribed(nested, f"{prefix}{name}.") if nested else []
        return names

    assert "warmup_steps" in fields_of(Recipe, ("recalibration", "schedule"))
    assert undescribed(Recipe, "") == []
