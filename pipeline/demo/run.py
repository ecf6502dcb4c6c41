"""What `drope demo` does before the pipeline: documents, recall words and, to pretrain, a random model."""

from pathlib import Path

import pipeline
from foundation.files import write_json
from pipeline.demo.corpus import FOODS, NAMES, write_parquet
from pipeline.demo.start import write_random_model
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe

ROOT = Path(pipeline.__file__).resolve().parents[1]
MODEL = ROOT / "pipeline" / "demo" / "model"
INPUTS = Path("runs/demo-inputs")


def prepare_demo(overrides: tuple[str, ...], *, pretrain: bool) -> tuple[Path, tuple[str, ...]]:
    """Writes the demo's inputs below runs/; returns its recipe and the overrides that point to them.

    Raises: RecipeError if the recipes are not beside the packages (an installation that is not a checkout).
    """
    recipe = ROOT / "recipes" / ("demo-pretrain.yaml" if pretrain else "demo.yaml")
    if not recipe.is_file():
        raise RecipeError(f"{recipe}: no such file; run the demo from a checkout of the project")
    words = INPUTS / "words.json"
    paths = [f"data.sources.0.path={INPUTS / recipe.stem}.parquet"]
    if pretrain:
        paths.append(f"model.path={INPUTS / 'random-model'}")
    else:
        paths += [f"model.path={MODEL}", f"evaluation.recall.keys={words}", f"evaluation.recall.values={words}"]
    given = (*paths, *overrides)
    resolved = load_recipe(recipe, given)
    if pretrain:
        write_random_model(INPUTS / "random-model")
    else:
        write_json(words, {"keys": NAMES, "values": FOODS})
    # A little more than the training takes, since some documents are held out: no token is trained on twice.
    tokens = resolved.recalibration.tokens * 21 // 20
    write_parquet(INPUTS / f"{recipe.stem}.parquet", seed=resolved.data.seed, tokens=tokens)
    return recipe, given
