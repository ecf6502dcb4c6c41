"""What a plan says of recipes, and its refusals."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from model_surgery.errors import SurgeryError
from model_surgery.shape import read_shape
from pipeline.errors import RecipeError
from pipeline.recipe.recipe import load_recipe
from pipeline.tools.plan import disk_bytes, make_plan

RECIPES = Path(__file__).resolve().parents[3] / "recipes"


@pytest.mark.real_processes
def test_published_recipes_plan_without_network_and_write_nothing(drope: Any, tmp_path: Path) -> None:
    for name, gpus in (("smollm-360m", 8), ("smollm-1.7b", 8), ("llama2-7b", 32)):
        result = drope("plan", RECIPES / f"{name}.yaml", "--json", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        plan = json.loads(result.stdout)
        assert plan["gpus"] == gpus
        assert plan["memory_per_gpu"]["total"] < 80e9
        (unchecked,) = plan["unchecked"]
        assert unchecked.endswith(" is not on this machine: its tensors, tokenizer and documents")
    assert list(tmp_path.iterdir()) == []


def test_the_plan_says_what_auto_is_and_for_which_machine() -> None:
    """This machine has no GPU; one of 80 GB is assumed for every TP rank."""
    auto = ("recalibration.micro_batch=auto", "recalibration.data_parallel=auto")
    plan = make_plan(load_recipe(RECIPES / "smollm-360m.yaml", auto))
    assert (plan.training.data_parallel, plan.gpus) == (1, 1)
    assert 1 < plan.training.micro_batch < 512
    assert plan.as_dict()["micro_batch"] == plan.training.micro_batch
    assert plan.memory.total < 0.9 * 80e9
    assert f"micro batch   {plan.training.micro_batch} of 512 rows" in plan.as_text()
    assert "(auto, for GPUs of 80 GB, assumed since none is here)" in plan.as_text()
    assert "auto" not in make_plan(load_recipe(RECIPES / "smollm-360m.yaml")).as_text()


def test_the_plan_says_what_is_computed_in_fp8_and_why() -> None:
    recipe = load_recipe(Path("recipes/llama2-7b.yaml"), ("recalibration.precision=fp8",))
    plan = make_plan(recipe)
    layers = plan.layers
    assert (layers.layers, layers.fp8_attention, layers.fp8_linear) == ("transformer_engine", True, False)
    assert "attention in FP8 (heads of 128 on Hopper (assumed" in plan.as_text()
    assert plan.as_dict()["layers"]["fp8_attention"] is True
    of_64 = ("recalibration.precision=fp8", "recalibration.fp8.attention=on")
    with pytest.raises(RecipeError, match=r"fp8.attention = on: Hopper .* trains heads of 128 in FP8 alone"):
        make_plan(load_recipe(Path("recipes/smollm-360m.yaml"), of_64))
    filled = load_recipe(Path("recipes/smollm-360m.yaml"), (*of_64, "recalibration.fp8.pad_head_dim=true"))
    assert make_plan(filled).layers.fp8_attention


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_an_export_takes_the_disk_of_its_weights(
    dtype: str, size: int, write_recipe: Callable[..., Path], tiny_model: Path
) -> None:
    """In bytes; the tiny model is untied, so its parameters are those of its file."""
    recipe = load_recipe(write_recipe(export={"dtype": dtype}))
    values = sum(tensor.numel() for tensor in load_file(tiny_model / "model.safetensors").values())
    assert disk_bytes(recipe, read_shape(tiny_model), 4096)["export"] == values * size


def test_the_plan_says_how_often_the_data_are_read() -> None:
    assert make_plan(load_recipe(RECIPES / "llama2-7b.yaml", ())).epochs == pytest.approx(10_485_760_000 / 10.5e9)
    longer = load_recipe(RECIPES / "llama2-7b.yaml", ("recalibration.tokens=20971520000",))
    assert "2.00 epochs of the data" in make_plan(longer).as_text()
    assert make_plan(load_recipe(RECIPES / "llama2-7b.yaml", ("data.tokens=null",))).epochs is None


def test_heads_that_do_not_divide_are_padded_and_the_plan_says_so() -> None:
    plan = make_plan(load_recipe(RECIPES / "smollm-360m.yaml", ("surgery.tensor_parallel=2",)))
    assert plan.padding == "padded with zeros: query heads 15 -> 18, KV heads 5 -> 6 (+4.3% weights)"
    assert plan.padding in plan.as_text()
    assert plan.as_dict()["padding"] == plan.padding
    assert make_plan(load_recipe(RECIPES / "smollm-360m.yaml")).padding == ""
    with pytest.raises(SurgeryError, match=r"surgery\.tensor_parallel = 16: .* has 15 query heads; use 15 or less"):
        make_plan(load_recipe(RECIPES / "smollm-360m.yaml", ("surgery.tensor_parallel=16",)))


def test_norms_of_queries_and_keys_are_counted() -> None:
    plain, normed = (
        make_plan(load_recipe(RECIPES / "llama2-7b.yaml", (f"surgery.qk_norm={kind}",))) for kind in ("none", "full")
    )
    assert normed.shape.parameters - plain.shape.parameters == 32 * 2 * 4096
    assert normed.memory.activations > plain.memory.activations


def test_the_evaluations_memory_by_hand() -> None:
    """Llama 2 7B at 16 times its context in bf16: rows take 64k tokens' activations, answers their keys and values."""
    answers = make_plan(load_recipe(RECIPES / "llama2-7b.yaml")).evaluation
    assert answers.memory.kv_cache == 2 * 32 * 32 * 128 * 65536 * 2
    assert answers.fits
    assert str(answers.memory).startswith("46.1 GiB at 16x (65,536 tokens): weights 12.6, KV cache 32.0")
    rows_alone = ("evaluation.context_factors=[1, 16]", "evaluation.niah=null", "evaluation.longbench=null")
    plan = make_plan(load_recipe(RECIPES / "llama2-7b.yaml", rows_alone))
    assert (plan.evaluation.memory.kv_cache, plan.evaluation.memory.activations) == (
        0,
        65536 * (4 * 4096 + 3 * 11008) * 2,
    )
    assert plan.evaluation.memory.weights == pytest.approx(2 * plan.shape.parameters, rel=1e-3)
    assert (
        "evaluation    18.6 GiB at 16x (65,536 tokens): weights 12.6, KV cache 0.0, activations 6.0 (GiB, estimated); "
        "fits into a GPU of 80 GB, assumed since none is here"
    ) in plan.as_text()
    assert "warning" not in plan.as_text()


def test_an_evaluation_that_does_not_fit_is_a_warning() -> None:
    """It may run on another machine than the training; at its own start it refuses."""
    too_long = ("evaluation.niah={tasks: [niah_single_1], context_factors: [1, 32]}", "evaluation.dtype=float32")
    plan = make_plan(load_recipe(RECIPES / "llama2-7b.yaml", too_long))
    assert plan.evaluation.memory.kv_cache == 2 * 32 * 32 * 128 * 131072 * 4
    memory = plan.as_dict()["evaluation_memory"]
    assert (memory["fits"], memory["available"], memory["tokens"]) == (False, 80_000_000_000, 131072)
    assert memory["total"] == memory["weights"] + memory["kv_cache"] + memory["activations"]
    last = plan.as_text().splitlines()[-2]
    assert last.startswith("warning       the evaluation would be refused, as it takes more than a GPU of 80 GB")
    assert last.endswith("or take smaller niah.context_factors or longbench.factor or dtype bfloat16")


def test_plan_of_a_local_model_checks_its_tensors_and_documents(write_recipe: Callable[..., Path]) -> None:
    plan = make_plan(load_recipe(write_recipe()))
    assert (plan.steps, plan.tokens, plan.gpus, plan.unchecked) == (12, 12 * 128, 2, [])
    assert set(plan.stages.values()) == {"to do"}


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.row_length=64", "context of 32 tokens"),
        (
            "recalibration.sequence_parallel=true data.row_length=31",
            "31 is not a multiple of surgery.tensor_parallel = 2",
        ),
        ("data.validation_fraction=0", "held-out documents"),
        ("evaluation.variants=[control]", "recalibration.control = true"),
        ("model.path=nowhere", "no such folder"),
        ("model.path=nobody/nothing", "known without a download"),
        ("model.path=../nowhere", "no such folder"),
        ("model.path=a--b/c", "no such folder"),
    ],
)
def test_plan_refuses_what_cannot_work(write_recipe: Callable[..., Path], override: str, part: str) -> None:
    with pytest.raises(RecipeError, match=part):
        make_plan(load_recipe(write_recipe(), override.split()))
