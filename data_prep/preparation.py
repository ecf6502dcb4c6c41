"""What is planned, what is done and what is left to do in a folder."""

import contextlib
import itertools
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from data_prep import merge
from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.estimate import first_documents, short_sample
from data_prep.plan import Plan, all_pieces, load_or_make, token_budgets
from data_prep.pool import Encoders, Workers, do_trusted, tell_difference
from data_prep.shards import BYTES_PER_DOCUMENT, TOKEN_TYPES, token_type
from data_prep.tokenizers.checked import choose
from data_prep.tokenizers.reference import Tokenizer
from data_prep.work import PIECES, Job, PieceRecord, job_of, piece_name, read_record

MOST_SAMPLED = 8  # pieces of a source that are opened to find one with documents
DISK_RESERVE = 1.02  # records, plan and manifest beside the shards


@dataclass
class Preparation:
    """What is planned and what is done in a folder."""

    config: DataConfig
    encoder: Tokenizer
    tokenizer: Path
    out_dir: Path
    workers: int
    plan: Plan = field(init=False)
    records: dict[tuple[int, int], PieceRecord] = field(default_factory=dict)
    done_here: int = 0

    def __post_init__(self) -> None:
        self.plan = load_or_make(self.out_dir / PIECES, self.config, self.encoder)

    def job(self, source: int, number: int) -> Job:
        return job_of(self.plan, self.config, self.out_dir, source, number)

    def look(self) -> None:
        """Read the records that have appeared, of this and of other tasks."""
        present = {path.name for path in (self.out_dir / PIECES).iterdir()}
        for key in all_pieces(self.plan):
            if key not in self.records and f"{self._name(*key)}.json" in present:
                self.records[key] = read_record(self.job(*key))

    def _name(self, source: int, number: int) -> str:
        return piece_name(self.config.sources[source], source, number)

    def jobs(self, task: int, of: int) -> Iterator[Job]:
        """The task's pieces that are neither done nor beyond the token budget, as it stands when each is asked for."""
        budgets = token_budgets(self.config)
        for source, number in itertools.islice(all_pieces(self.plan), task, None, of):
            if (source, number) in self.records:
                continue
            if budgets[source] is not None:
                self.look()
            job = self.job(source, number)
            if job.record_path.is_file():  # done by another process since
                self.records[source, number] = read_record(job)
            elif not self._beyond(source, number, budgets[source]):
                yield job

    def _beyond(self, source: int, number: int, budget: int | None) -> bool:
        """Whether the complete pieces before this one hold all the tokens that are wanted of its source."""
        if budget is None:
            return False
        before = (record for (of, place), record in self.records.items() if of == source and place < number)
        return sum(record.train.tokens for record in before if record.train) >= budget

    def do(self, task: int, of: int) -> int:
        """Do the task's pieces; how many there were."""
        jobs = self.jobs(task, of)
        first = next(jobs, None)
        if first is None:
            return 0
        second = next(jobs, None)
        self.done_here = 0
        if second is None:
            backend = self._backend(task, of)
            with self._bar(task, of) as bar:
                self._do_here(first, backend, bar)
        else:
            queue = itertools.chain([first, second], jobs)
            with Workers(self.tokenizer, self.config.check_fraction, self.workers) as workers:
                backend = self._backend(task, of)
                with self._bar(task, of) as bar:
                    workers.do(queue, backend, bar=bar, finished=self._finished)
        return self.done_here

    @contextlib.contextmanager
    def _bar(self, task: int, of: int) -> Iterator[tqdm]:
        """Bytes of text, whose number is an estimate: at the end it is full."""
        title = "tokenizing" if of == 1 else f"task {task} of {of}"
        with tqdm(total=self._bytes_left(task, of), desc=title, unit="B", unit_scale=True, disable=None) as bar:
            yield bar
            bar.update(bar.total - bar.n)

    def _bytes_left(self, task: int, of: int) -> int:
        """Text in the task's pieces that are not done."""
        mine = itertools.islice(all_pieces(self.plan), task, None, of)
        left = (key for key in mine if key not in self.records)
        return sum(self.plan.sources[source].pieces[number].piece.text_bytes for source, number in left)

    def _do_here(self, job: Job, backend: str | None, bar: tqdm) -> None:
        """A single piece is not worth a process of its own."""
        encoders = Encoders(self.encoder, self.config.check_fraction)
        done = do_trusted(job, encoders, backend, lambda text_bytes, tokens: bar.update(text_bytes))
        if done.difference:
            tell_difference(done.difference)
        self._finished(job, done.record)

    def _backend(self, task: int, of: int) -> str | None:
        """The fast library that this task may use, proven on its own documents; None for the reference."""
        texts = self._first_texts(task, of)
        choice = choose(self.encoder, self.config.backend, [*chain(*map(short_sample, texts))], [*chain(*texts)])
        return choice.backend.name.split()[0] if choice.backend else None

    def _first_texts(self, task: int, of: int) -> list[list[str]]:
        """Of every source of which the task has pieces, the first documents of the first piece with any."""
        found: dict[int, list[str]] = {}
        looked: Counter[int] = Counter()
        for source, number in itertools.islice(all_pieces(self.plan), task, None, of):
            if found.get(source) or looked[source] == MOST_SAMPLED or (source, number) in self.records:
                continue
            looked[source] += 1
            job = self.job(source, number)
            found[source], _ = first_documents(job.file, self.config.sources[source], job.piece, self.config)
        return list(found.values())

    def _finished(self, job: Job, record: PieceRecord) -> None:
        self.records[job.source, job.number] = record
        self.done_here += 1
        if record.counts.rejected:
            merge.refuse_hopeless(self.plan, self.config, self.records, self.out_dir)

    def refuse_small_disk(self) -> None:
        """Raises: DataError if what is still to be written does not fit on the disk."""
        need = self.bytes_to_write()
        free = shutil.disk_usage(self.out_dir).free
        if need > free:
            raise DataError(
                f"{self.out_dir}: about {need:,} bytes of shards are still to be written, {free:,} bytes are free; "
                "free some space, choose another folder (runs_dir), or lower data.tokens"
            )

    def bytes_to_write(self) -> int:
        """Estimate, from the plan's sample, of the bytes of the shards that are not there yet."""
        token_bytes = TOKEN_TYPES[token_type(self.encoder.vocab_size)]
        total = 0.0
        budgets = token_budgets(self.config)
        for index, (source, budget) in enumerate(zip(self.plan.sources, budgets, strict=True)):
            done = {number for of, number in self.records if of == index}
            left = sum(p.piece.text_bytes for number, p in enumerate(source.pieces) if number not in done)
            tokens = left * source.tokens_per_byte
            if budget is not None:
                held_in = 1 - self.config.held_out_fraction(self.config.sources[index])
                have = sum(
                    record.train.tokens for (of, _), record in self.records.items() if of == index and record.train
                )
                tokens = min(tokens, max(0, budget - have) / max(held_in, 1e-9))
            documents = tokens * source.documents_per_byte / max(source.tokens_per_byte, 1e-9)
            total += tokens * token_bytes + documents * BYTES_PER_DOCUMENT
        return int(total * DISK_RESERVE)
