"""Tokenize with datatrove's DocumentTokenizer.

Runs in datatrove's own environment, hence imports nothing of the project. One task per worker. Its pass that shuffles
the documents of a file is off, and no metadata column is read: less work for datatrove, and nothing that the others do.
"""

import argparse
from pathlib import Path

from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader, ParquetReader
from datatrove.pipeline.tokens import DocumentTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of .jsonl or of .parquet files")
    parser.add_argument("--tokenizer", type=Path, required=True, help="tokenizer.json")
    parser.add_argument("--eos", required=True, help="token to end documents with")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()

    folder = str(arguments.folder)
    if any(arguments.folder.glob("*.parquet")):
        reader = ParquetReader(folder, glob_pattern="*.parquet", read_metadata=False)
    else:
        reader = JsonlReader(folder, glob_pattern="*.jsonl")
    writer = DocumentTokenizer(
        str(arguments.out / "tokens"),
        tokenizer_name_or_path=str(arguments.tokenizer),
        eos_token=arguments.eos,
        shuffle_documents=False,
    )
    LocalPipelineExecutor(
        [reader, writer],
        tasks=arguments.workers,
        workers=arguments.workers,
        logging_dir=str(arguments.out / "logs"),
    ).run()


if __name__ == "__main__":
    main()
