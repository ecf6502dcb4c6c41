import json
import subprocess
import sys

import pytest
from pydantic import ValidationError

from eval.config import EvaluationConfig, HarnessTask, NiahConfig, RecallConfig

RECALL = {"fact": "{key} {value} ", "question": "{key}", "keys": ("a", "b", "c"), "values": ("x", "y"), "needles": 1}


def test_defaults_are_the_papers_comparison() -> None:
    config = EvaluationConfig()
    assert config.variants == ("rope", "pi", "ntk", "yarn", "drope")
    assert config.context_factors == (1, 2, 4, 8)


def test_context_factors_are_read_under_their_old_name_too() -> None:
    new = {"context_factors": [1, 4], "niah": {"context_factors": [2, 16]}}
    old = {"lengths": [1, 4], "niah": {"lengths": [2, 16]}}
    assert EvaluationConfig.model_validate(old) == EvaluationConfig.model_validate(new)
    assert EvaluationConfig.model_validate(new).niah_factors == (2, 16)
    for section in (EvaluationConfig, NiahConfig):
        with pytest.raises(ValidationError, match="lengths is the old name of context_factors; give one of the two"):
            section.model_validate({"lengths": [1], "context_factors": [1]})


def test_what_runs_record_keeps_the_old_name() -> None:
    """Manifests and results of finished runs are compared with it."""
    config = EvaluationConfig(context_factors=(1, 4), niah={"context_factors": (2,)}, longbench={"factor": 8})
    for recorded in (config.model_dump(mode="json"), json.loads(config.model_dump_json())):
        assert recorded["lengths"] == [1, 4] and "context_factors" not in recorded
        assert recorded["niah"]["lengths"] == [2] and "context_factors" not in recorded["niah"]
        assert recorded["longbench"]["factor"] == 8
        assert EvaluationConfig.model_validate(recorded) == config


@pytest.mark.parametrize(
    "section",
    [
        {"context_factors": [2048, 4096]},
        {"lengths": [65]},
        {"niah": {"context_factors": [1, 65]}},
        {"longbench": {"factor": 65}},
    ],
)
def test_a_length_in_tokens_is_no_context_factor(section: dict) -> None:
    message = (
        r"context factors are multiples of the training context \(2: twice its length\), 64 at most; (4096|65) looks"
    )
    with pytest.raises(ValidationError, match=f"{message} like a number of tokens"):
        EvaluationConfig.model_validate(section)


def test_the_largest_context_factor() -> None:
    largest = {"context_factors": [1, 64], "niah": {"context_factors": [64]}, "longbench": {"factor": 64}}
    assert EvaluationConfig.model_validate(largest).longest == 64


def test_round_trip_through_json_keeps_everything() -> None:
    config = EvaluationConfig(recall=RECALL, harness=({"name": "arc", "path": "arc.jsonl"},))
    assert EvaluationConfig.model_validate_json(config.model_dump_json()) == config


def test_keys_may_be_a_file() -> None:
    assert RecallConfig(**{**RECALL, "keys": "words.json"}).keys.name == "words.json"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"context_factors": (2, 2)}, r"\[2, 2\] must rise, without repeats"),
        ({"context_factors": (0,)}, r"context_factors\.0\n.*greater than or equal to 1"),
        ({"context_factors": ()}, r"context_factors\n.*at least 1 item"),
        ({"variants": ("rope", "rope")}, "variants names rope twice"),
        ({"variants": ("alibi",)}, "'rope', 'pi', 'ntk', 'dynamic_ntk', 'yarn'"),
        ({"unknown": 1}, r"unknown\n.*Extra inputs are not permitted"),
        ({"softmax_scale_c": float("nan")}, r"softmax_scale_c\n.*finite number"),
        ({"harness": ({"name": "loss", "path": "x"},)}, "one of our own tasks"),
        ({"harness": ({"name": "a", "path": "x"}, {"name": "a", "path": "y"})}, "harness names a twice"),
    ],
)
def test_bad_evaluation_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        EvaluationConfig(**changed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fact": "{key} "}, "must have {key} and {value} and no other"),
        ({"fact": "{key} {value} {where}"}, "must have {key} and {value} and no other placeholder"),
        ({"question": "{key} {value}"}, "must have {key} and no other"),
        ({"question": "{key"}, "is no template"),
        ({"keys": ("a", "a")}, r"keys\n.*has a word twice"),
        ({"values": ("a", "")}, r"values\n.*must have at least one word and no empty one"),
    ],
)
def test_bad_recall_is_refused(changed: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RecallConfig(**{**RECALL, **changed})


def test_task_name_is_fit_for_a_file_name() -> None:
    with pytest.raises(ValidationError, match=r"name\n.*should match pattern"):
        HarnessTask(name="../arc", path="arc.jsonl")


def test_importing_the_config_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'megatron', 'datasets', 'lm_eval', 'numpy'}"
    program = f"import sys, eval.config; loaded = {heavy} & set(sys.modules); sys.exit(str(loaded) if loaded else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
