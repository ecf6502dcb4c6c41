"""What is planned in a folder, what of it is done, and what is left."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from data_prep.config import DataConfig
from data_prep.errors import DataError
from data_prep.plan import PieceKey, Plan, extend, load_or_make, token_budgets
from data_prep.tokenizers.reference import Tokenizer
from data_prep.work_item import PIECES, PieceRecord, Records, WorkItem, piece_name, work_item


class Shortage(NamedTuple):
    """A source whose pieces hold fewer training tokens than its budget, while it has more files."""

    source: int
    tokens: int


@dataclass
class Progress:
    """The plan of a folder, and the records of its pieces that are complete."""

    config: DataConfig
    encoder: Tokenizer
    out_dir: Path
    plan: Plan
    records: Records = field(default_factory=dict)

    @classmethod
    def of_folder(cls, config: DataConfig, encoder: Tokenizer, out_dir: Path) -> "Progress":
        """The progress in a folder, which is planned now if it is not yet.

        Raises: DataError if it was planned with other settings, or a record is damaged; DiskError.
        """
        progress = cls(config, encoder, out_dir, load_or_make(out_dir / PIECES, config, encoder))
        progress.refresh()
        return progress

    def refresh(self) -> None:
        """Read the records that have appeared, of this and of other tasks."""
        present = {path.name for path in (self.out_dir / PIECES).iterdir()}
        for source, number in self.plan.pieces():
            name = piece_name(self.config.sources[source], source, number)
            if (source, number) not in self.records and f"{name}.json" in present:
                self.records[source, number] = self.item((source, number)).read_record()

    def item(self, key: PieceKey) -> WorkItem:
        """A piece of the plan, done or not."""
        return work_item(self.plan, self.config, self.out_dir, key)

    def left(self, task: int, of: int) -> Iterator[PieceKey]:
        """The task's pieces that are not known to be done, whether the token budget needs them or not."""
        return (key for key in self.plan.pieces(task, of) if key not in self.records)

    def items(self, task: int, of: int) -> Iterator[WorkItem]:
        """The task's pieces that are neither done nor beyond the token budget, as it stands when each is asked for."""
        budgets = token_budgets(self.config)
        for key in self.plan.pieces(task, of):
            if key in self.records:
                continue
            budget = budgets[key[0]]
            if budget is not None:
                self.refresh()
            item = self.item(key)
            if item.record_path.is_file():  # done by another process since
                self.records[key] = item.read_record()
            elif budget is None or self._tokens_before(key) < budget:
                yield item

    def _tokens_before(self, key: PieceKey) -> int:
        """Training tokens in the complete pieces of the source that come before this one."""
        source, number = key
        return sum(
            record.train_tokens for (of, place), record in self.records.items() if of == source and place < number
        )

    def train_tokens(self, source: int) -> int:
        """Training tokens in the complete pieces of a source."""
        return sum(record.train_tokens for (of, _), record in self.records.items() if of == source)

    def shortage(self) -> Shortage | None:
        """The first source whose pieces, all done, hold too few tokens, and that has more files; None if none is."""
        for index, (source, budget) in enumerate(zip(self.plan.sources, token_budgets(self.config), strict=True)):
            if budget is None or source.cut == len(source.files):
                continue
            if (tokens := self.train_tokens(index)) < budget:
                return Shortage(index, budget - tokens)
        return None

    def extend_plan(self, shortage: Shortage) -> None:
        """Cut more files of the source into pieces, enough for the tokens that it lacks."""
        self.plan = extend(self.plan, shortage.source, self.config, shortage.tokens, self.out_dir / PIECES)

    def used_records(self) -> Records:
        """The records of the pieces that count: all of a source, or the first ones that hold its tokens.

        Raises: DataError if one of them is not done.
        """
        self.refresh()
        used: Records = {}
        for index, (source, budget) in enumerate(zip(self.plan.sources, token_budgets(self.config), strict=True)):
            tokens = 0
            for number in range(len(source.pieces)):
                used[index, number] = record = self._record((index, number))
                tokens += record.train_tokens
                if budget is not None and tokens >= budget:
                    break
        return used

    def _record(self, key: PieceKey) -> PieceRecord:
        if key not in self.records:
            raise DataError(f"{self.item(key).record_path}: this piece is not done; run its task again")
        return self.records[key]
