"""Export at the end of a run: what `drope export` writes, and that evaluation takes it. One run on the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model_surgery.transformers_registration import register_drope
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.runs.manifest import Manifest
from pipeline.stages.export import exported_models

SCALE = {"factor": 2, "c": 0.3}


def test_a_scale_adds_a_folder_and_changes_none(write_recipe: Callable[..., Path]) -> None:
    plain = load_recipe(write_recipe())
    scaled = load_recipe(write_recipe(export={"softmax_scale": SCALE}))
    assert exported_models(plain) == {"drope": "recalibration"}
    assert exported_models(scaled) == {"drope": "recalibration", "drope-scaled": "recalibration"}


def test_two_ways_to_say_beta_are_refused(write_recipe: Callable[..., Path]) -> None:
    with pytest.raises(RecipeError, match=r"export\.softmax_scale.*give either beta, or factor and c"):
        load_recipe(write_recipe(export={"softmax_scale": SCALE | {"beta": 1.2}}))
    with pytest.raises(RecipeError, match=r"export\.softmax_scale\.beta.*greater than 0"):
        load_recipe(write_recipe(), ("export.softmax_scale.beta=-1",))


def test_a_format_that_no_class_has_is_refused_before_any_work(write_recipe: Callable[..., Path], drope: Any) -> None:
    result = drope("plan", write_recipe(), "export.format=identity_rope", "surgery.qk_norm=full")
    assert result.returncode == 2
    assert result.stderr.startswith("drope: export.format = identity_rope: no stock class has a norm over all heads")


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.real_processes
def test_a_whole_run_with_norms_and_a_scale(write_recipe: Callable[..., Path], raw_recipe: dict, drope: Any) -> None:
    surgery = raw_recipe["surgery"] | {"qk_norm": "full"}
    evaluation = raw_recipe["evaluation"] | {"variants": ["rope", "drope", "drope_scaled"], "softmax_scale_c": 0.3}
    recipe = write_recipe(surgery=surgery, evaluation=evaluation, export={"softmax_scale": SCALE})
    stages = [argument for name in ("data", "surgery", "recalibration") for argument in ("--stage", name)]
    result = drope("run", recipe, *stages)
    assert result.returncode == 0, result.stderr
    result = drope("export", recipe, "--dtype", "bfloat16")
    assert result.returncode == 0, result.stderr
    run = recipe.parent / "runs" / "tiny"
    manifest = Manifest.load(run / "export")
    assert manifest.config["dtype"] == "bfloat16"
    beta = manifest.facts["drope-scaled"]["softmax_scale"]["beta"]
    assert beta == pytest.approx(1 + 0.3 * 0.693147, abs=1e-6)
    for name, scale in (("drope", None), ("drope-scaled", SCALE | {"beta": beta, "apply": "weights"})):
        facts = manifest.facts[name]
        assert facts["class"] == "DroPELlamaForCausalLM"
        assert 0 < facts["mean_difference"] < facts["limit"]  # bfloat16 against fp32 weights, the scale undone
        config = json.loads((run / "export" / name / "config.json").read_text())
        assert config["dtype"] == "bfloat16"
        assert config["drope"].get("softmax_scale") == scale
    plain, scaled = (load_file(run / "export" / name / "model-00001.safetensors") for name in manifest.facts)
    changed = {name for name in plain if not torch.equal(plain[name], scaled[name])}
    assert changed == {f"model.layers.{layer}.self_attn.q_norm.weight" for layer in range(2)}
    result = drope("evaluate", recipe, "export.dtype=bfloat16")
    assert result.returncode == 0, result.stderr
    check_evaluation_is_of_the_plain_export(run, beta)


def check_evaluation_is_of_the_plain_export(run: Path, beta: float) -> None:
    """drope_scaled at 2x, scored from export/drope, is what export/drope-scaled computes."""
    from eval.variants.loading import load_variant

    register_drope()
    tokens = torch.arange(2, 66)[None]
    with torch.inference_mode():
        ours = load_variant("drope_scaled", run / "export" / "drope", 2, context=32, softmax_scale_c=0.3)
        exported = load_variant("drope", run / "export" / "drope-scaled", 2, context=32)
        for model in (ours, exported):
            assert model.config.max_position_embeddings == 64
        difference = (ours(tokens).logits - exported(tokens).logits).abs().max()
    assert difference < 0.05  # beta in fp32, against beta rounded with the weight to bfloat16
    scores = json.loads((run / "evaluation" / "results.json").read_text())
    assert {curve["variant"] for curve in scores["curves"]} == {"rope", "drope", "drope_scaled"}
    assert beta > 1
