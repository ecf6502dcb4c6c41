"""Samples on disk: drawn once for every variant and every task of a job array, and readable by lm-eval."""

import json
import logging
from pathlib import Path

from eval.config import NiahConfig
from eval.digests import digest_text
from eval.errors import RUN_AGAIN
from eval.tasks.niah import scoring
from eval.tasks.niah.samples import Encode, Sample, draw_samples
from foundation.files import write_text

log = logging.getLogger(__name__)

NIAH = "niah"
"""Folder of the samples below the evaluation's."""
NIAH_ENDINGS = (".jsonl", ".yaml")
_SCORE = "score.py"
_FORM = 1
"""Raised whenever the same settings would draw other samples."""


def load_or_draw(
    name: str,
    config: NiahConfig,
    essays: tuple[str, ...],
    encode: Encode,
    *,
    factor: int,
    length: int,
    seed: int,
    digests: dict[str, str],
    out_dir: Path,
) -> list[Sample]:
    """The samples of one task at one length from out_dir/niah, where they are those, or drawn and put there.

    Beside them lies a task for lm-eval that scores any model on them, e.g. with vLLM:
    lm_eval --include_path out_dir/niah --tasks NAME-SIZEx. digests: of the tokenizer and the essays.

    Raises: EvaluationError as `draw_samples`; DiskError for a full disk.
    """
    path = out_dir / NIAH / f"{name}-{factor}x.jsonl"
    settings = config.model_dump(mode="json", include={"samples", "new_tokens", "depths"})
    facts = {"form": _FORM, "task": name, "length": length, "seed": seed, **settings, **digests}
    digest = digest_text(json.dumps(facts, sort_keys=True))
    if (kept := _read(path, digest)) is not None:
        return kept
    log.info("drawing %d samples of %s at %d tokens", config.samples, name, length)
    samples = draw_samples(name, config, essays, encode, length, seed)
    lines = [{"digest": digest, **_record(sample)} for sample in samples]
    write_text(path.with_name(_SCORE), Path(scoring.__file__).read_text(encoding="utf-8"), RUN_AGAIN)
    write_text(path.with_suffix(".yaml"), _lm_eval_task(path, config.new_tokens), RUN_AGAIN)
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), RUN_AGAIN)
    return samples


def _record(sample: Sample) -> dict[str, object]:
    """The sample with the names that lm-eval's RULER gives its fields."""
    return {
        "index": sample.index,
        "input": sample.prompt,
        "gen_prefix": sample.prefix,
        "outputs": sample.answers,
        "depth": sample.depth,
        "tokens": sample.tokens,
    }


def _read(path: Path, digest: str) -> list[Sample] | None:
    if not path.is_file():
        return None
    try:
        records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
        if any(record["digest"] != digest for record in records):
            return None
        return [
            Sample(
                record["index"],
                record["input"],
                record["gen_prefix"],
                tuple(record["outputs"]),
                tuple(record["tokens"]),
                record["depth"],
            )
            for record in records
        ]
    except (ValueError, KeyError, TypeError):
        log.warning("%s is unreadable; drawing its samples again", path)
        return None


def _lm_eval_task(path: Path, new_tokens: int) -> str:
    """lm-eval's own way to score the file: generation without sampling, RULER's string match."""
    import yaml

    task = {
        "task": path.stem,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{input}}",
        "doc_to_target": "{{outputs}}",
        "gen_prefix": "{{gen_prefix}}",
        "target_delimiter": " ",
        "generation_kwargs": {"do_sample": False, "max_gen_toks": new_tokens, "until": []},
        "metric_list": [
            {"metric": "string_match", "aggregation": "mean", "higher_is_better": True},
        ],
    }
    text = yaml.safe_dump(task, sort_keys=False)
    return text + "process_results: !function score.process_results\n"
