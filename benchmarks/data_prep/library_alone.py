"""The tokenizer library that data preparation would choose, alone, on documents that are already in memory.

Every worker process holds every --workers-th document. Loading is over before the clock starts; the time is from the
first worker's start to the last one's end. No EOS, no reading, no writing, no checks: an upper bound.
"""

import argparse
import json
import multiprocessing
import multiprocessing.connection
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

# As data preparation makes its batches.
BATCH_CHARACTERS = 2 * 2**20
BATCH_DOCUMENTS = 1024
SAMPLE_DOCUMENTS = 200
TIMED_BATCHES = 2


def _batches(files: list[Path], worker: int, workers: int) -> list[list[str]]:
    batches: list[list[str]] = [[]]
    characters = number = 0
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for line in lines:
                number += 1
                if number % workers != worker:
                    continue
                batches[-1].append(json.loads(line)["text"])
                characters += len(batches[-1][-1])
                if characters >= BATCH_CHARACTERS or len(batches[-1]) == BATCH_DOCUMENTS:
                    batches.append([])
                    characters = 0
    return batches


def _encode(
    worker: int, workers: int, files: list[Path], tokenizer: Path, name: str | None, ready: Barrier
) -> tuple[float, float, int]:
    from data_prep.tokenizers.fast import load_fast
    from data_prep.tokenizers.reference import load_tokenizer

    reference = load_tokenizer(tokenizer)
    encode = (load_fast(name, reference) if name else reference).encode_flat
    batches = _batches(files, worker, workers)
    tokens = 0
    ready.wait()
    started = time.monotonic()
    for batch in batches:
        tokens += len(encode(batch).ids)
    return started, time.monotonic(), tokens


def _report(connection: multiprocessing.connection.Connection, *arguments) -> None:
    connection.send(_encode(*arguments))


def _choice(files: list[Path], tokenizer: Path) -> tuple[str | None, str]:
    """The library's name as data preparation calls it, None for the reference; and its name with version."""
    from data_prep.tokenizers.checked import choose
    from data_prep.tokenizers.reference import load_tokenizer

    reference = load_tokenizer(tokenizer)
    timed = [text for batch in _batches(files[:1], 0, 1)[:TIMED_BATCHES] for text in batch]
    backend = choose(reference, "auto", timed[:SAMPLE_DOCUMENTS], timed).backend
    return (backend.name.split()[0], backend.name) if backend else (None, reference.name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSONL files")
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder for library.json")
    parser.add_argument("--workers", type=int, required=True)
    arguments = parser.parse_args()

    os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    name, shown = _choice(arguments.files, arguments.tokenizer)
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(arguments.workers)
    processes, ends = [], []
    for worker in range(arguments.workers):
        own, theirs = context.Pipe(duplex=False)
        inputs = (theirs, worker, arguments.workers, arguments.files, arguments.tokenizer, name, ready)
        processes.append(context.Process(target=_report, args=inputs))
        processes[-1].start()
        theirs.close()
        ends.append(own)
    times = [end.recv() for end in ends]
    for process in processes:
        process.join()
    seconds = max(end for _, end, _ in times) - min(start for start, _, _ in times)
    result = {"library": shown, "seconds": seconds, "tokens": sum(tokens for _, _, tokens in times)}
    (arguments.out / "library.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
