"""Documents of all sources -> shards in one folder: the work of one machine, of one task of many, and the merge."""

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from data_prep import artifact, merge, rejection_limit
from data_prep.artifact import ShardSet
from data_prep.config import DataConfig
from data_prep.disk_space import refuse_small_disk
from data_prep.errors import DataError
from data_prep.plan import FILE_NAME as PLAN
from data_prep.plan import refuse_other_files
from data_prep.pool import available_cores
from data_prep.progress import Progress
from data_prep.reading.sources import check_source
from data_prep.task import Task
from data_prep.tokenizers.reference import Tokenizer, load_tokenizer
from data_prep.work_item import PIECES, SHARDS
from foundation.errors import DiskError
from foundation.files import explained_writes, remove_leftovers

logger = logging.getLogger(__name__)


def run(
    config: DataConfig, *, tokenizer: Path, model_vocab_size: int, out_dir: Path, workers: int | None = None
) -> ShardSet:
    """Tokenize every document, end it with EOS, and leave train and validation shards and shards.json in `out_dir`.

    Pieces of work that are complete in `out_dir`, from an earlier run that was stopped or from tasks (`work`), are not
    done again. `workers` processes work side by side (None: one per core).

    The same inputs and settings give the same shards, byte for byte, however many tasks and workers made them and
    however often they were killed. A document is held out if its hash says so: of the sources that are split by hash,
    no text is in both splits. (One that is held out, or trained on, as a whole may share texts with others.)

    Raises: DataError for everything that `check` refuses, too many documents that cannot be read, a corpus without
    tokens, a split that is smaller than one row; DiskError for a full disk. Complete pieces stay.
    """
    encoder = load_tokenizer(tokenizer)
    _check_tokenizer(encoder, tokenizer, model_vocab_size)
    _check_sources(config)
    out_dir = Path(out_dir)
    if (out_dir / artifact.FILE_NAME).is_file():
        return merge.finish(config, encoder, out_dir)
    with _nothing_without_progress(out_dir):
        progress = _open_folder(config, encoder, out_dir)
        refuse_other_files(progress.plan, config, out_dir)
        task = Task(progress, Path(tokenizer), workers or available_cores())
        task.do()
        while (shortage := progress.shortage()) is not None:
            progress.extend_plan(shortage)
            task.do()
        return merge.merge(progress, str(tokenizer))


def work(
    config: DataConfig,
    *,
    tokenizer: Path,
    model_vocab_size: int,
    out_dir: Path,
    task: int,
    of: int,
    workers: int | None = None,
) -> int:
    """The share of task `task` (0 ... of - 1) of the pieces in `out_dir`; the number of pieces that it did.

    Every task finds the same pieces. `run` puts them together when all tasks are done.

    Raises: DataError as `run`.
    """
    if not 0 <= task < of:
        raise DataError(f"task {task} of {of}: tasks are counted from 0 to {of - 1}")
    out_dir = Path(out_dir)
    encoder = load_tokenizer(tokenizer)
    _check_tokenizer(encoder, tokenizer, model_vocab_size)
    if not is_planned(out_dir):  # of a thousand tasks the first ones look at the sources
        _check_sources(config)
    if (out_dir / artifact.FILE_NAME).is_file():
        logger.info("%s: all shards are complete", out_dir)
        return 0
    try:
        progress = _open_folder(config, encoder, out_dir)
        return Task(progress, Path(tokenizer), workers or available_cores(), task, of).do()
    except (DataError, DiskError, FileNotFoundError):
        if not (out_dir / artifact.FILE_NAME).is_file():
            raise
        # Others have done all pieces and merged them meanwhile; what this task wrote last is not part of the set.
        logger.info("%s: all shards are complete", out_dir)
        merge.clean(ShardSet.load(out_dir), out_dir)
        return 0


def is_planned(out_dir: Path) -> bool:
    """Whether the pieces of a preparation in this folder are planned, or done."""
    return (Path(out_dir) / PIECES / PLAN).is_file() or (Path(out_dir) / artifact.FILE_NAME).is_file()


def undone_tasks(config: DataConfig, *, tokenizer: Path, out_dir: Path, of: int) -> list[int]:
    """Numbers of the tasks, of `of`, that have pieces left to do; all of them where no piece is planned yet.

    Raises: DataError as `check_merge`, but not for pieces that are missing.
    """
    out_dir = Path(out_dir)
    if (out_dir / artifact.FILE_NAME).is_file():
        return []
    if not is_planned(out_dir):
        return list(range(of))
    progress = Progress.of_folder(config, load_tokenizer(tokenizer), out_dir)
    refuse_other_files(progress.plan, config, out_dir)
    return [task for task in range(of) if next(progress.items(task, of), None) is not None]


def check_merge(config: DataConfig, *, tokenizer: Path, out_dir: Path) -> None:
    """Raises: DataError if pieces that the merge needs are not done; the first is named."""
    out_dir = Path(out_dir)
    if (out_dir / artifact.FILE_NAME).is_file():
        return
    if not (out_dir / PIECES).is_dir():
        raise DataError(f"{out_dir}: no task has worked here yet; run the tasks first (--task I --of N)")
    progress = Progress.of_folder(config, load_tokenizer(tokenizer), out_dir)
    refuse_other_files(progress.plan, config, out_dir)
    missing = [item.name for item in progress.items(0, 1)]
    if missing:
        raise DataError(
            f"{out_dir}: {len(missing)} pieces are not done, the first is {missing[0]}; run their tasks again, or "
            "leave --merge out to do them here"
        )
    shortage = progress.shortage()
    if shortage is not None:
        progress.extend_plan(shortage)
        raise DataError(
            f"{out_dir}: {shortage.tokens:,} tokens are missing of {config.sources[shortage.source].label}; more of "
            "its files have been added to the plan: run the tasks again"
        )


def check(config: DataConfig, *, tokenizer: Path, model_vocab_size: int) -> None:
    """Refuse what can be refused without tokenizing: files, columns, and a tokenizer that does not fit the model.

    Raises: DataError.
    """
    _check_tokenizer(load_tokenizer(tokenizer), tokenizer, model_vocab_size)
    _check_sources(config)


def _check_tokenizer(encoder: Tokenizer, tokenizer: Path, model_vocab_size: int) -> None:
    if encoder.vocab_size > model_vocab_size:
        raise DataError(
            f"tokenizer {tokenizer}: ids up to {encoder.vocab_size - 1}, but the model's vocabulary has "
            f"{model_vocab_size} entries; use the model's own tokenizer"
        )


def _check_sources(config: DataConfig) -> None:
    if all(source.split == "validation" for source in config.sources):
        raise DataError("data.sources: every source is held out (split: validation); none is left to train on")
    for source in config.sources:
        check_source(source)


def _open_folder(config: DataConfig, encoder: Tokenizer, out_dir: Path) -> Progress:
    """The folder made ready for work: planned, without leftovers of killed processes, and with room for the shards."""
    for folder in (out_dir / PIECES, out_dir / SHARDS):
        with explained_writes(folder):
            folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
    remove_leftovers(out_dir)
    progress = Progress.of_folder(config, encoder, out_dir)
    refuse_small_disk(progress)
    return progress


@contextlib.contextmanager
def _nothing_without_progress(out_dir: Path) -> Iterator[None]:
    """Bad input that ends the work without a shard or a rejected document leaves nothing, nor the folder made here."""
    planned = is_planned(out_dir)  # then others may be at work
    missing = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    try:
        yield
    except (DataError, DiskError):
        has_rejected = (out_dir / rejection_limit.FILE_NAME).is_file()
        if not planned and not has_rejected and not any((out_dir / SHARDS).glob("*.idx")):
            for folder in (out_dir / PIECES, out_dir / SHARDS):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in missing:
                with contextlib.suppress(OSError):  # something else came to be in it
                    folder.rmdir()
        raise
