"""The pieces of one task: by which library they are encoded, in how many processes, with a progress bar."""

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from data_prep.estimate import first_documents, short_sample
from data_prep.pool import Encoders, Workers, do_trusted, warn_of_difference
from data_prep.progress import Progress
from data_prep.rejection_limit import refuse_hopeless
from data_prep.tokenizers.checked import choose
from data_prep.work_item import PieceRecord, WorkItem

MOST_SAMPLED = 8  # pieces of a source that are opened to find one with documents


@dataclass
class Task:
    """Task `number` of `of`, with `workers` processes that load the tokenizer from its file."""

    progress: Progress
    tokenizer: Path
    workers: int
    number: int = 0
    of: int = 1
    pieces_done: int = 0

    def do(self) -> int:
        """Do the pieces of the task that are left; how many this call did.

        Raises: DataError, DiskError and WorkFailed as `Workers.do`; DataError if too many documents are rejected.
        """
        items = self.progress.items(self.number, self.of)
        first, second = next(items, None), next(items, None)
        if first is None:
            return 0
        self.pieces_done = 0
        if second is None:
            self._do_here(first)
        else:
            self._do_in_workers(itertools.chain([first, second], items))
        return self.pieces_done

    def _do_here(self, item: WorkItem) -> None:
        """A single piece is not worth a process of its own."""
        backend = self._backend()
        encoders = Encoders(self.progress.encoder, self.progress.config.check_fraction)
        with self._bar() as bar:

            def meter(text_bytes: int, tokens: int) -> None:
                bar.update(text_bytes)

            done = do_trusted(item, encoders, backend, meter)
            if done.difference:
                warn_of_difference(done.difference)
            self._finish(item, done.record)

    def _do_in_workers(self, items: Iterator[WorkItem]) -> None:
        """The workers start while the library is chosen."""
        with Workers(self.tokenizer, self.progress.config.check_fraction, self.workers) as workers:
            backend = self._backend()
            with self._bar() as bar:
                workers.do(items, backend, bar=bar, finished=self._finish)

    def _finish(self, item: WorkItem, record: PieceRecord) -> None:
        progress = self.progress
        progress.records[item.key] = record
        self.pieces_done += 1
        if record.counts.rejected:
            refuse_hopeless(progress.plan, progress.config, progress.records, progress.out_dir)

    @contextlib.contextmanager
    def _bar(self) -> Iterator[tqdm]:
        """Bytes of text, whose number is an estimate: at the end it is full."""
        title = "tokenizing" if self.of == 1 else f"task {self.number} of {self.of}"
        total = sum(self.progress.item(key).piece.text_bytes for key in self.progress.left(self.number, self.of))
        with tqdm(total=total, desc=title, unit="B", unit_scale=True, disable=None) as bar:
            yield bar
            bar.update(total - bar.n)

    def _backend(self) -> str | None:
        """The fast library that this task may use, proven on its own documents; None for the reference."""
        texts = self._first_texts()
        sample = [text for of_source in texts for text in short_sample(of_source)]
        timed = [text for of_source in texts for text in of_source]
        choice = choose(self.progress.encoder, self.progress.config.backend, sample, timed)
        return choice.backend.name.split()[0] if choice.backend else None

    def _first_texts(self) -> list[list[str]]:
        """Of every source of which the task has pieces, the first documents of the first piece with any."""
        config = self.progress.config
        texts: dict[int, list[str]] = {}
        looked: Counter[int] = Counter()
        for key in self.progress.left(self.number, self.of):
            source, _ = key
            if texts.get(source) or looked[source] == MOST_SAMPLED:
                continue
            looked[source] += 1
            item = self.progress.item(key)
            texts[source], _ = first_documents(item.file, config.sources[source], item.piece, config)
        return list(texts.values())
