import subprocess
import sys

import pytest
from pydantic import ValidationError

from data_prep.config import DataConfig, SourceConfig


def test_import_is_light():
    heavy = ["torch", "transformers", "datasets", "megatron", "numpy", "pyarrow", "tokenizers", "sentencepiece"]
    code = f"import sys, data_prep.config; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_field_is_described():
    for model in (SourceConfig, DataConfig):
        assert all(field.description for field in model.model_fields.values())


@pytest.mark.parametrize(
    "change",
    [
        {"row_length": 1},
        {"sources": []},
        {"sources": [{"path": "a", "weight": 0}]},
        {"sources": [{"path": "a", "wieght": 1}]},
        {"validation_fraction": 1.0},
        {"max_tokens": 0},
    ],
)
def test_bad_values_are_refused(change: dict):
    good = {"sources": [{"path": "a"}], "row_length": 8}
    assert DataConfig.model_validate(good).sources[0].format == "auto"
    with pytest.raises(ValidationError):
        DataConfig.model_validate(good | change)
