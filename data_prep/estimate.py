"""What a sample of the documents tells of all: how many tokens and documents there are in a byte of input."""

import itertools

from data_prep.config import DataConfig, SourceConfig
from data_prep.reading.files import SourceFile
from data_prep.reading.pieces import Piece
from data_prep.reading.readers import read_piece
from data_prep.tokenizers.reference import Tokenizer

SAMPLE_DOCUMENTS = 200
SAMPLE_CHARACTERS = 1_000_000  # encoded by the reference
READ_CHARACTERS = 4_000_000


def densities(
    file: SourceFile, source: SourceConfig, piece: Piece, config: DataConfig, encoder: Tokenizer
) -> tuple[float, float]:
    """Tokens and documents per byte of a piece's `text_bytes`, on its first documents; zeros if it has none."""
    texts, share = first_documents(file, source, piece, config)
    read = share * piece.text_bytes
    if not texts or not read:
        return 0.0, 0.0
    sample = short_sample(texts)
    tokens = len(encoder.encode_flat(sample).ids) + len(sample)
    tokens_per_character = tokens / max(1, sum(map(len, sample)))
    return tokens_per_character * sum(map(len, texts)) / read, len(texts) / read


def first_documents(
    file: SourceFile, source: SourceConfig, piece: Piece, config: DataConfig
) -> tuple[list[str], float]:
    """The first documents of a piece, up to about `READ_CHARACTERS`, and the share of the piece that was read."""
    texts: list[str] = []
    rows = 0
    for records in read_piece(file, source, piece, config.max_document_bytes):
        texts += records.texts
        rows += len(records.texts) + sum(rejection.documents for rejection in records.rejected)
        if records.positions and sum(map(len, texts)) > READ_CHARACTERS:
            if piece.documents:
                return texts, rows / piece.documents
            # Up to the start of the last document, which is little against the sample, unless it is all of it.
            read = max(records.positions[-1] - piece.start, sum(map(len, records.texts[-1:])))
            return texts, min(1.0, read / max(1, piece.text_bytes))
    return texts, 1.0


def short_sample(texts: list[str]) -> list[str]:
    """The first documents with text: `SAMPLE_DOCUMENTS` or about `SAMPLE_CHARACTERS` at most, and one at least."""
    sizes = 0
    sample = []
    for text in itertools.islice((text for text in texts if text and not text.isspace()), SAMPLE_DOCUMENTS):
        sample.append(text)
        sizes += len(text)
        if sizes >= SAMPLE_CHARACTERS:
            break
    return sample
