"""A corpus of any size out of a few megabytes of real English.

Repeating the text would flatter every tokenizer that caches words. So each document is new: its sentences are drawn, by
a seeded generator, from different documents, and about 3% of its words are replaced by words never seen before (rare
names, numbers; random letters with the lengths and letter frequencies of the text). Lengths are log-normal as on the
web: median 2,000 bytes, mean about 3,300. What remains unlike the web: the other 97% of the words come from a small
vocabulary, and random words are cut into more tokens than real rare ones (the report prints bytes per token).

A smaller corpus of the same seed begins with the same documents.
"""

import datetime
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from random import Random

from benchmarks.data_prep.base_text import UnseenWords, sentences

UNSEEN_SHARE = 0.03
MEDIAN_BYTES = 2000
SIGMA = 1.0
ROWS_PER_GROUP = 1000
FORMATS = ("jsonl", "parquet")


@dataclass(frozen=True)
class Corpus:
    """The same documents as JSONL and as Parquet files: folder/jsonl/*.jsonl, folder/parquet/*.parquet."""

    folder: str
    documents: int
    text_bytes: int
    unseen_share: float  # of the words
    files: int

    def paths(self, file_format: str) -> list[Path]:
        return sorted((Path(self.folder) / file_format).glob(f"*.{file_format}"))

    def texts(self) -> Iterator[str]:
        for path in self.paths("jsonl"):
            with path.open(encoding="utf-8") as lines:
                yield from (json.loads(line)["text"] for line in lines)


def build(base: Path, folder: Path, megabytes: float, *, files: int, seed: int) -> Corpus:
    """The corpus in `folder` of `megabytes` (10^6 bytes) of text in `files` files; taken as it is if already there."""
    marker = folder / "corpus.json"
    key = {"megabytes": megabytes, "files": files, "seed": seed, "recipe": _recipe_digest()}
    if marker.is_file() and (result := json.loads(marker.read_text()))["key"] == key:
        return Corpus(**result["corpus"])
    if folder.exists():
        shutil.rmtree(folder)
    for name in FORMATS:
        (folder / name).mkdir(parents=True)
    pool = sentences(base / "text", base / "benchmarks" / "hellaswag_validation.jsonl")
    maker = DocumentMaker(pool, seed)
    budget = round(megabytes * 1e6 / files)
    total = [0, 0]
    for number in range(files):
        texts = list(maker.documents(budget))
        _write_jsonl(folder / "jsonl" / f"{number:03d}.jsonl", texts, number)
        _write_parquet(folder / "parquet" / f"{number:03d}.parquet", texts, number)
        total[0] += len(texts)
        total[1] += sum(len(text.encode()) for text in texts)
    corpus = Corpus(str(folder), total[0], total[1], maker.unseen / maker.words, files)
    marker.write_text(json.dumps({"key": key, "corpus": asdict(corpus)}, indent=1))
    return corpus


class DocumentMaker:
    """Makes documents one after the other; `words` and `unseen` count what it used."""

    def __init__(self, pool: list[list[str]], seed: int) -> None:
        self.words = self.unseen = 0
        self._pool = pool
        self._random = Random(seed)
        self._unseen_words = iter(UnseenWords(Counter(chain.from_iterable(pool)), seed))
        self._until_next = self._gap()

    def documents(self, text_bytes: int) -> Iterator[str]:
        """Documents until they hold `text_bytes`."""
        written = 0
        while written < text_bytes:
            text = self._document(self._random.lognormvariate(0, SIGMA) * MEDIAN_BYTES)
            written += len(text.encode())
            yield text

    def _document(self, length: float) -> str:
        parts: list[str] = []
        size = 0
        while size < length:
            sentence = self._sentence(self._pool[int(self._random.random() * len(self._pool))])
            parts += (sentence, "\n" if self._random.random() < 0.15 else " ")
            size += len(sentence) + 1
        return "".join(parts[:-1])

    def _sentence(self, words: list[str]) -> str:
        self.words += len(words)
        place = self._until_next  # of the next word to replace, counted from the start of the sentence
        fresh = list(words)
        while place < len(words):
            fresh[place] = self._unseen()
            place += 1 + self._gap()
        self._until_next = place - len(words)
        sentence = " ".join(fresh)
        while "<unk>" in sentence:
            # Each takes the place of a later replacement, so that the share of unseen words stays as it is.
            sentence = sentence.replace("<unk>", self._unseen(), 1)
            self._until_next += 1 + self._gap()
        return sentence

    def _unseen(self) -> str:
        self.unseen += 1
        return next(self._unseen_words)

    def _gap(self) -> int:
        """Words to keep before the next unseen one, so that the share of unseen ones is UNSEEN_SHARE."""
        return int(self._random.expovariate(UNSEEN_SHARE))


def records(texts: list[str], number: int) -> Iterator[dict]:
    """Rows in the schema of FineWeb."""
    day = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    for index, text in enumerate(texts):
        identity = hashlib.blake2b(f"{number}/{index}".encode(), digest_size=16).hexdigest()
        yield {
            "text": text,
            "id": f"<urn:uuid:{identity}>",
            "dump": "CC-MAIN-2024-10",
            "url": f"https://example.org/{identity[:8]}/{index}",
            "date": (day + datetime.timedelta(seconds=37 * index)).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "file_path": f"s3://commoncrawl/crawl-data/CC-MAIN-2024-10/segments/{number:05d}.warc.gz",
            "language": "en",
            "language_score": 0.65 + index % 350 / 1000,
            "token_count": len(text) // 4,
        }


def _write_jsonl(path: Path, texts: list[str], number: int) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for record in records(texts, number):
            stream.write(json.dumps(record, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, texts: list[str], number: int) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(list(records(texts, number)))
    pyarrow.parquet.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP)


def _recipe_digest() -> str:
    """Changes when this way of making text does, so that a corpus of an older way is not taken."""
    digest = hashlib.sha256()
    for name in ("corpus.py", "base_text.py"):
        digest.update((Path(__file__).parent / name).read_bytes())
    return digest.hexdigest()[:16]
