"""Every refusal, before any work: one line that names the thing and the way out."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import torch
from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

from eval.config import EvaluationConfig
from eval.errors import EvaluationError
from eval.models import Models
from eval.run import check, run
from foundation.errors import DiskError
from tests.eval.conftest import write_shard

RECALL = {
    "fact": "{key} likes {value}. ",
    "question": "{key} likes",
    "keys": ("Tom", "Lily", "Ben"),
    "values": ("cats", "dogs"),
    "needles": 2,
    "samples": 3,
}


def config_of(**changes: object) -> EvaluationConfig:
    return EvaluationConfig(**{"context_factors": (1, 2), "loss": {"tokens": 1000}, "recall": RECALL, **changes})


def refused(config: EvaluationConfig, models: Models, message: str, tmp_path: Path) -> None:
    """`check` and `run` refuse alike, in one line, and nothing is written."""
    with pytest.raises(EvaluationError, match=message) as caught:
        check(config, models)
    assert "\n" not in str(caught.value)
    with pytest.raises(EvaluationError, match=message):
        run(config, models=models, out_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_good_input_passes(models: Models) -> None:
    check(config_of(), models)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"variants": ("control",)}, "control needs .* which is absent.*take control out"),
        ({"harness": ({"name": "arc", "path": "nowhere.jsonl"},)}, "harness.arc: nowhere.jsonl does not exist"),
        ({"recall": {**RECALL, "keys": "nowhere.json"}}, "recall.keys: nowhere.json does not exist"),
        ({"recall": {**RECALL, "needles": 3}}, "3 keys for 3 needles"),
        (
            {"recall": {**RECALL, "values": ("cats", "東京")}},
            "recall.values: the tokenizer does not know all of '東京'",
        ),
        ({"recall": {**RECALL, "fact": "{key} {value} " * 300}}, "needles and the question take .* the length is 512"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_bad_configuration(models: Models, tmp_path: Path, changed: dict, message: str) -> None:
    if changed.get("device") == "cuda" and torch.accelerator.is_available():
        pytest.skip("this machine has an accelerator")
    refused(config_of(**changed), models, message, tmp_path)


def test_too_little_held_out_text(models: Models, documents: list[list[int]], tmp_path: Path) -> None:
    few = dataclasses.replace(models, validation=(write_shard(tmp_path / "few", documents[:9]),))
    tokens = sum(map(len, documents[:9]))
    message = (
        f"validation: {tokens} tokens, but one row at 64x the context of 512 takes 32769; prepare more validation "
        "text, or take 64 out of context_factors"
    )
    refused(config_of(context_factors=(1, 64)), few, re.escape(message), tmp_path)


def changed_folder(folder: Path, to: Path, change: Callable[[dict], None]) -> Path:
    """A copy of a model folder with another config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    change(config)
    (to / "config.json").unlink()
    (to / "config.json").write_text(json.dumps(config))
    return to


def test_absent_export(models: Models, tmp_path: Path) -> None:
    refused(config_of(), dataclasses.replace(models, drope=None), "drope needs the recalibrated export", tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(model_type="nonsense"), "unknown format"),
        (lambda config: config.update(model_type="gpt2"), "model type 'gpt2'"),
        (lambda config: config.update(vocab_size=100), "2048 tokens, but .* has a vocabulary of 100"),
        (lambda config: config.update(rope_scaling={"type": "linear", "factor": 2.0}), "rope_type 'linear'"),
    ],
)
def test_bad_source(models: Models, tmp_path: Path, change: Callable[[dict], None], message: str) -> None:
    folder = changed_folder(models.source, tmp_path / "source", change)
    refused(config_of(), dataclasses.replace(models, source=folder), message, tmp_path)


def test_source_without_a_model(models: Models, tmp_path: Path) -> None:
    refused(config_of(), dataclasses.replace(models, source=tmp_path), "no config.json there", tmp_path)


def test_weights_in_no_known_format(models: Models, tmp_path: Path) -> None:
    folder = tmp_path / "gguf"
    folder.mkdir()
    shutil.copy(models.source / "config.json", folder)
    (folder / "model.gguf").write_bytes(b"")
    refused(
        config_of(),
        dataclasses.replace(models, source=folder),
        r"gguf: no \*\.safetensors nor pytorch_model\*\.bin weights there",
        tmp_path,
    )


def test_export_that_still_rotates(models: Models, tmp_path: Path) -> None:
    refused(config_of(), dataclasses.replace(models, drope=models.source), r"layers \[0, 1\] still have RoPE", tmp_path)
    folder = changed_folder(models.drope, tmp_path / "half", lambda config: config.update(no_rope_layers=[0, 1]))
    refused(config_of(), dataclasses.replace(models, drope=folder), r"layers \[1\] still have RoPE", tmp_path)


@pytest.mark.parametrize("norms", ["none", "per_head", "full"])
@pytest.mark.parametrize("export_format", ["auto", "identity_rope"])
def test_every_export_is_accepted(norms: str, export_format: str, models: Models, tmp_path: Path) -> None:
    """Scored without positions it is a drope; with RoPE kept it is refused as one, and a control all the same."""
    from eval.models import read_config, require_no_rope, require_rope
    from eval.variants.loading import load_variant
    from model_surgery import export
    from model_surgery.config import ExportConfig, SurgeryConfig
    from model_surgery.convert import convert

    layout = convert(SurgeryConfig(qk_norm=norms), source=models.source, out_dir=tmp_path / "layout")
    config = ExportConfig(format="auto" if norms == "full" else export_format)
    folders = {}
    for position_embedding in ("none", "rope"):
        changed = layout.model_copy(update={"position_embedding": position_embedding})
        (tmp_path / "layout" / "layout.json").write_text(changed.model_dump_json())
        out = folders[position_embedding] = tmp_path / position_embedding
        export.run(config, layout_dir=tmp_path / "layout", source=models.source, out_dir=out, export_check=None)
    check(config_of(), dataclasses.replace(models, drope=folders["none"]))
    refused(config_of(), dataclasses.replace(models, drope=folders["rope"]), "still have RoPE", tmp_path)
    require_no_rope(folders["none"], read_config(folders["none"]))
    require_rope(folders["rope"], read_config(folders["rope"]))
    with pytest.raises(
        EvaluationError,
        match=r"/none: (\w+ with rope_type '\w+'; the RoPE variants start from a llama, qwen2 or qwen3"
        r"|attention_type '\w+' has no RoPE)",
    ):
        require_rope(folders["none"], read_config(folders["none"]))
    tokens = torch.arange(10, 74)[None]
    with torch.inference_mode():
        plain, scaled = (
            load_variant(variant, folders["none"], 4, context=512, softmax_scale_c=0.4)(tokens).logits
            for variant in ("drope", "drope_scaled")
        )
    assert (plain - scaled).abs().max() > 0.01


def test_a_source_without_rope_is_refused_only_where_it_is_scored(models: Models) -> None:
    alone = dataclasses.replace(models, source=models.drope)
    check(config_of(variants=("drope", "drope_scaled"), softmax_scale_c=0.1), alone)
    with pytest.raises(EvaluationError, match="smollm3 with rope_type 'default'; the RoPE variants start from"):
        check(config_of(), alone)


def test_tokenizer_absent_or_broken(models: Models, tmp_path: Path) -> None:
    refused(config_of(), dataclasses.replace(models, tokenizer=tmp_path / "none"), "no such tokenizer", tmp_path)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{")
    refused(config_of(), dataclasses.replace(models, tokenizer=broken), "unknown tokenizer format", tmp_path)


def test_validation_absent(models: Models, tmp_path: Path) -> None:
    refused(
        config_of(),
        dataclasses.replace(models, validation=(tmp_path / "x",)),
        r"x\.idx does not exist; run the data stage first",
        tmp_path,
    )


def test_validation_of_another_tokenizer(models: Models, tmp_path: Path) -> None:
    builder = IndexedDatasetBuilder(f"{tmp_path / 'big'}.bin", dtype=numpy.int32)
    builder.add_document(torch.arange(2000, 4000), [2000])
    builder.finalize(f"{tmp_path / 'big'}.idx")
    changed = dataclasses.replace(models, validation=(tmp_path / "big",))
    refused(config_of(), changed, "token id 3024, but the model's vocabulary ends at 2047", tmp_path)


def test_folder_that_cannot_be_made(models: Models, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DiskError, match=r"file: cannot be written \(Not a directory\); choose another folder"):
        run(config_of(), models=models, out_dir=tmp_path / "file")
