from pathlib import Path

import numpy
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from eval.config import EvaluationConfig
from eval.errors import EvaluationError
from eval.held_out import check_held_out, count_tokens, open_prefixes, read_tokens


@pytest.fixture
def prefixes(tmp_path: Path) -> tuple[Path, ...]:
    written = []
    for name, documents in (("a", [[1, 2, 3], [4]]), ("b", [[5, 6]])):
        builder = IndexedDatasetBuilder(f"{tmp_path / name}.bin", dtype=numpy.uint16)
        for document in documents:
            builder.add_document(torch.tensor(document), [len(document)])
        builder.finalize(f"{tmp_path / name}.idx")
        written.append(tmp_path / name)
    return tuple(written)


@pytest.mark.parametrize(("limit", "expected"), [(99, [1, 2, 3, 4, 5, 6]), (5, [1, 2, 3, 4, 5]), (2, [1, 2])])
def test_documents_are_joined_in_order(prefixes: tuple[Path, ...], limit: int, expected: list[int]) -> None:
    datasets = open_prefixes(prefixes)
    assert count_tokens(datasets) == 6
    assert read_tokens(datasets, limit).tolist() == expected


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nothing\.idx does not exist"):
        open_prefixes((tmp_path / "nothing",))


def test_other_format_is_refused(prefixes: tuple[Path, ...]) -> None:
    Path(f"{prefixes[0]}.idx").write_bytes(b"no index at all, though long enough")
    with pytest.raises(EvaluationError, match=r"a\.idx: unknown format, not a Megatron index; write it again"):
        open_prefixes(prefixes)


def test_truncated_index_is_refused(prefixes: tuple[Path, ...]) -> None:
    index = Path(f"{prefixes[0]}.idx")
    index.write_bytes(index.read_bytes()[:40])
    with pytest.raises(EvaluationError, match=r"a\.idx: unknown format: \w"):
        open_prefixes(prefixes)


def test_truncated_tokens_are_refused(prefixes: tuple[Path, ...]) -> None:
    Path(f"{prefixes[0]}.bin").write_bytes(b"\0\0")
    with pytest.raises(EvaluationError, match=r"a\.bin has 2 bytes, its index wants 8; write it again"):
        open_prefixes(prefixes)


def test_a_row_needs_one_token_more_than_its_length() -> None:
    """The last token of a row is a label alone."""
    config = EvaluationConfig(variants=("rope",), context_factors=(1, 4))
    check_held_out(config, context=64, available=257)
    with pytest.raises(EvaluationError, match=r"256 tokens, but one row at 4x the context of 64 takes 257; prepare"):
        check_held_out(config, context=64, available=256)
