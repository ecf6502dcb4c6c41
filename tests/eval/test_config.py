import subprocess
import sys

import pytest
from pydantic import ValidationError

from eval.config import EvaluationConfig, HarnessTask, RecallConfig

RECALL = {"fact": "{key} {value} ", "question": "{key}", "keys": ("a", "b", "c"), "values": ("x", "y"), "needles": 1}


def test_defaults_are_the_papers_comparison() -> None:
    config = EvaluationConfig()
    assert config.variants == ("rope", "pi", "ntk", "yarn", "drope")
    assert config.lengths == (1, 2, 4, 8)


def test_round_trip_through_json_keeps_everything() -> None:
    config = EvaluationConfig(recall=RECALL, harness=({"name": "arc", "path": "arc.jsonl"},))
    assert EvaluationConfig.model_validate_json(config.model_dump_json()) == config


def test_keys_may_be_a_file() -> None:
    assert RecallConfig(**{**RECALL, "keys": "words.json"}).keys.name == "words.json"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"lengths": (2, 1)}, "must rise"),
        ({"lengths": (0,)}, "greater than or equal to 1"),
        ({"lengths": ()}, "at least 1 item"),
        ({"variants": ("rope", "rope")}, "rope twice"),
        ({"variants": ("alibi",)}, "'rope', 'pi', 'ntk', 'dynamic_ntk', 'yarn'"),
        ({"unknown": 1}, "Extra inputs"),
        ({"softmax_scale_c": float("nan")}, "finite"),
        ({"harness": ({"name": "loss", "path": "x"},)}, "one of our own tasks"),
        ({"harness": ({"name": "a", "path": "x"}, {"name": "a", "path": "y"})}, "a twice"),
    ],
)
def test_bad_evaluation_is_refused(changed: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        EvaluationConfig(**changed)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fact": "{key} "}, "must have {key} and {value}"),
        ({"fact": "{key} {value} {where}"}, "no other placeholder"),
        ({"question": "{key} {value}"}, "must have {key}"),
        ({"question": "{key"}, "is no template"),
        ({"keys": ("a", "a")}, "twice"),
        ({"values": ()}, "at least one word"),
    ],
)
def test_bad_recall_is_refused(changed: dict, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RecallConfig(**{**RECALL, **changed})


def test_task_name_is_fit_for_a_file_name() -> None:
    with pytest.raises(ValidationError, match="pattern"):
        HarnessTask(name="../arc", path="arc.jsonl")


def test_importing_the_config_loads_no_heavy_library() -> None:
    heavy = "{'torch', 'transformers', 'megatron', 'datasets', 'lm_eval', 'numpy'}"
    program = f"import sys, eval.config; found = {heavy} & set(sys.modules); sys.exit(str(found) if found else 0)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
