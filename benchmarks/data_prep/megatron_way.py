"""Tokenize as Megatron-LM's preprocess_data.py does, with megatron-core and the tokenizer library as installed.

A pool of --workers processes encodes one JSON line each (imap in chunks of 32) and appends EOS; the main process
receives the ids and writes them with IndexedDatasetBuilder. JSONL only, as there. One thing is kinder to Megatron here:
tokenizer.json is read by `tokenizers` itself, not through transformers.
"""

import argparse
import json
import multiprocessing
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

LINES_PER_CHUNK = 32
EOS = {".json": "<|endoftext|>", ".model": "</s>"}

_encode: Callable[[str], list[int]]
_eos_id: int


def load(tokenizer: Path) -> tuple[Callable[[str], list[int]], int, int]:
    """The function from a text to its ids, the id of EOS, and the size of the vocabulary."""
    if tokenizer.suffix == ".model":
        from sentencepiece import SentencePieceProcessor

        model = SentencePieceProcessor(model_file=str(tokenizer))
        return model.encode, model.eos_id(), model.get_piece_size()
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(tokenizer))
    backend.encode_special_tokens = True
    eos_id = backend.token_to_id(EOS[".json"])
    return lambda text: backend.encode(text, add_special_tokens=False).ids, eos_id, backend.get_vocab_size()


def _start_worker(tokenizer: Path) -> None:
    global _encode, _eos_id
    _encode, _eos_id, _ = load(tokenizer)


def _encode_line(line: str) -> list[int]:
    ids = _encode(json.loads(line)["text"])
    ids.append(_eos_id)
    return ids


def _lines(files: list[Path]) -> Iterator[str]:
    return chain.from_iterable(file.open(encoding="utf-8") for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()

    from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder

    _, _, vocabulary = load(arguments.tokenizer)
    prefix = str(arguments.out / "tokens_text_document")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=DType.optimal_dtype(vocabulary))
    with multiprocessing.Pool(arguments.workers, _start_worker, (arguments.tokenizer,)) as pool:
        for ids in pool.imap(_encode_line, _lines(arguments.files), LINES_PER_CHUNK):
            builder.add_document(ids, [len(ids)])
    builder.finalize(f"{prefix}.idx")


if __name__ == "__main__":
    main()
