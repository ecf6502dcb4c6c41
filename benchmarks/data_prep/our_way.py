"""Tokenize with this project's public function, in a fresh process."""

import argparse
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", help="glob of the input files")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, required=True, help="entries of the model's embedding")
    parser.add_argument("--validation-fraction", type=float, default=0.01)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()

    from data_prep import prepare
    from data_prep.config import DataConfig, SourceConfig

    config = DataConfig(
        sources=(SourceConfig(path=arguments.files),),
        row_length=128,
        validation_fraction=arguments.validation_fraction,
    )
    prepare.run(
        config,
        tokenizer=arguments.tokenizer,
        model_vocab_size=arguments.vocabulary,
        out_dir=arguments.out,
        workers=arguments.workers,
    )


if __name__ == "__main__":
    main()
