import re
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
    ("change", "place", "message"),
    [
        ({"row_length": 1}, "row_length", "greater than or equal to 2"),
        ({"sources": []}, "sources", "at least 1 item"),
        ({"sources": [{"path": "a", "weight": 0}]}, "sources.0.weight", "greater than 0"),
        ({"sources": [{"path": "a", "wieght": 1}]}, "sources.0.wieght", "Extra inputs"),
        ({"sources": [{}]}, "sources.0", "give either path .* or hub"),
        ({"sources": [{"path": "a", "hub": "b/c"}]}, "sources.0", "give either path .* or hub"),
        (
            {"sources": [{"path": "a", "revision": "main"}]},
            "sources.0",
            "revision belong to a hub data set",
        ),
        ({"validation_fraction": 1.0}, "validation_fraction", "less than 1"),
        ({"tokens": 0}, "tokens", "greater than 0"),
        ({"max_tokens": 1}, "max_tokens", "Extra inputs"),
    ],
)
def test_bad_values_are_refused(change: dict, place: str, message: str):
    good = {"sources": [{"path": "a"}], "row_length": 8}
    assert DataConfig.model_validate(good).sources[0].format == "auto"
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(good | change)
    first = caught.value.errors()[0]
    assert ".".join(map(str, first["loc"])) == place and re.search(message, first["msg"])
