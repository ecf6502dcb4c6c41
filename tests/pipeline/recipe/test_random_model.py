"""Where training from scratch starts: what is drawn, what identifies it, what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model_surgery.checkpoint import Checkpoint
from model_surgery.errors import SurgeryError
from model_surgery.known_models import KNOWN_MODELS
from pipeline.errors import RecipeError
from pipeline.recipe.random_model import (
    check_source,
    check_untrained,
    draw_source,
    source_fingerprint,
    source_folder,
    source_shape,
    with_trained_context,
)
from pipeline.recipe.recipe import Recipe, load_recipe
from pipeline.tools.plan import make_plan

RECIPES = Path(__file__).resolve().parents[3] / "recipes"
PAPER = RECIPES / "qwen2-494m-scratch.yaml"


@pytest.fixture
def scratch(write_scratch_recipe: Callable[..., Path]) -> Callable[..., Recipe]:
    """The miniature with overrides."""
    return lambda *overrides: load_recipe(write_scratch_recipe(), overrides)


def test_the_recipe_is_the_paper_s() -> None:
    recipe = load_recipe(PAPER)
    training = recipe.recalibration
    assert (training.steps(recipe.data.row_length), training.drop_at_step) == (16_000, 14_000)
    assert (training.batch, recipe.data.row_length, recipe.evaluation.softmax_scale_c) == (1024, 1024, 0.412)
    shape = with_trained_context(recipe, KNOWN_MODELS["Qwen/Qwen2-0.5B"])
    assert (shape.parameters, shape.context) == (494_032_768, 1024)
    assert recipe.data.tokens > training.tokens  # no token is trained on twice
    assert make_plan(recipe).memory.total < 80e9


def test_the_drawn_checkpoint_is_whole_and_has_the_context_it_is_trained_at(
    scratch: Callable[..., Recipe], described_model: Path
) -> None:
    recipe = scratch()
    folder = draw_source(recipe, described_model)
    assert folder == source_folder(recipe) == recipe.folder / "surgery" / "random-tiny-qwen2"
    with Checkpoint(folder) as checkpoint:
        assert checkpoint.shape == source_shape(recipe)
        assert checkpoint.shape.context == 32
    names = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    first = (folder / "model.safetensors").read_bytes()
    draw_source(recipe, described_model)
    assert (folder / "model.safetensors").read_bytes() == first
    draw_source(scratch("model.random_seed=1"), described_model)
    assert (folder / "model.safetensors").read_bytes() != first


def test_the_tokenizer_is_the_one_that_is_trained_with(
    scratch: Callable[..., Recipe], tiny_model: Path, described_model: Path, tmp_path: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(described_model / "config.json", bare)
    folder = draw_source(scratch(f"model.path={bare}"), tiny_model)
    assert (folder / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


def test_config_seed_and_context_identify_it_and_weights_beside_them_do_not(
    scratch: Callable[..., Recipe], qwen2_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(qwen2_model, tmp_path / "qwen2"))
    fingerprints = [
        source_fingerprint(scratch(f"model.path={model}", override))
        for override in ("model.random_seed=0", "model.random_seed=1", "data.row_length=16", "model.random_seed=null")
    ]
    (model / "model.safetensors").unlink()
    assert source_fingerprint(scratch(f"model.path={model}")) == fingerprints[0]
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"initializer_range": 0.1}))
    fingerprints.append(source_fingerprint(scratch(f"model.path={model}")))
    assert len(set(fingerprints)) == len(fingerprints)


def test_a_source_with_weights_is_itself(write_recipe: Callable[..., Path], tiny_model: Path) -> None:
    recipe = load_recipe(write_recipe())
    assert source_folder(recipe) == draw_source(recipe, tiny_model) == tiny_model
    assert not recipe.folder.exists()


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        ("-1", "= -1: input should be greater than or equal to 0"),
        ("4294967296", "= 4294967296: input should be less than 4294967296"),
        ("1.5", r"= 1\.5: input should be a valid integer"),
        ("a", "= 'a': input should be a valid integer"),
    ],
)
def test_what_is_no_seed_is_refused(scratch: Callable[..., Recipe], seed: str, message: str) -> None:
    with pytest.raises(RecipeError, match=rf"model\.random_seed {message}"):
        scratch(f"model.random_seed={seed}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, r"config\.json: no such file"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}, "RoPE of type 'yarn'"),
        ({"initializer_range": -0.02}, r"initializer_range = -0\.02 must be a number above 0"),
        ({"model_type": "gpt_neox"}, "model_type = 'gpt_neox' is not supported"),
    ],
)
def test_a_config_that_nothing_can_be_drawn_by_is_refused(
    change: dict[str, object] | None,
    message: str,
    scratch: Callable[..., Recipe],
    described_model: Path,
    tmp_path: Path,
) -> None:
    model = Path(shutil.copytree(described_model, tmp_path / "model"))
    path = model / "config.json"
    config = json.loads(path.read_text())
    path.unlink()
    if change is not None:
        path.write_text(json.dumps(config | change))
    recipe = scratch(f"model.path={model}")
    with pytest.raises(SurgeryError, match=message) as refused:
        source_shape(recipe)
        check_source(recipe)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("variant", ["rope", "pi", "ntk", "yarn"])
def test_variants_of_an_untrained_source_are_refused(scratch: Callable[..., Recipe], variant: str) -> None:
    check_untrained(scratch())
    check_untrained(scratch("model.random_seed=null", f"evaluation.variants=[{variant}]"))
    with pytest.raises(RecipeError, match=f"evaluation.variants has {variant}.* at random; use drope, drope_scaled"):
        check_untrained(scratch(f"evaluation.variants=[drope, {variant}]"))
