"""What is at a path: shards, a layout, a Hugging Face checkpoint, a stage or a run; as facts for human eyes."""

from pathlib import Path
from typing import Any

from model_surgery.files import file_digest, read_json
from pipeline.errors import RecipeError
from pipeline.runs.manifest import MANIFEST_FILE, Manifest

Facts = dict[str, Any]
_SHOWN_ROWS = 2


def inspect_path(path: Path, *, verify: bool = False) -> Facts:
    """Facts about the first thing that `path` is recognised as; with `verify` its bytes are compared with its digests.

    Raises: RecipeError if it is nothing known, does not verify, or has no digests to verify.
    """
    if not path.exists():
        raise RecipeError(f"{path}: no such file or folder")
    for is_one, facts_of in _KINDS:
        if is_one(path):
            return facts_of(path, verify)
    raise RecipeError(
        f"{path}: not recognised; known are a run or stage folder, a layout (layout.json), a training checkpoint "
        "(state.json), shards (shards.json, .bin, .idx) and a Hugging Face checkpoint (config.json)"
    )


def _run_facts(path: Path, verify: bool) -> Facts:
    manifests = sorted(filter(None, map(Manifest.load, _folders(path))), key=lambda manifest: manifest.finished)
    facts: Facts = {"kind": "run", "recipe": str(path / "recipe.yaml")}
    for manifest in manifests:
        facts[manifest.stage] = f"complete {manifest.finished:%Y-%m-%d %H:%M} UTC, {manifest.seconds:.0f} s"
        if verify:
            _stage_facts(path / manifest.stage, True)
    return facts | ({"digests": "all outputs as recorded"} if verify else {})


def _folders(path: Path) -> list[Path]:
    return [child for child in path.iterdir() if child.is_dir()]


def _stage_facts(path: Path, verify: bool) -> Facts:
    manifest = Manifest.load(path)
    if manifest is None:
        raise RecipeError(f"{path}: no {MANIFEST_FILE}; the stage is not complete")
    if verify:
        for output in manifest.outputs:
            if not (path / output.path).is_file() or file_digest(path / output.path) != output.sha256:
                raise RecipeError(
                    f"{path / output.path}: gone, or its bytes are not those recorded; run the stage again"
                )
    facts: Facts = {
        "kind": f"{manifest.stage} stage",
        "finished": f"{manifest.finished:%Y-%m-%d %H:%M:%S} UTC",
        "seconds": round(manifest.seconds, 1),
        "digest": manifest.digest,
        "outputs": f"{len(manifest.outputs)} files, {sum(o.bytes for o in manifest.outputs):,} bytes",
    }
    facts |= {f"input {name}": digest for name, digest in manifest.inputs.items()}
    facts |= {f"fact {name}": value for name, value in manifest.facts.items()}
    if (path / "shards.json").is_file():
        facts |= _shards_facts(path, verify) | {"kind": facts["kind"]}
    return facts | ({"digests": "all outputs as recorded"} if verify else {})


def _layout_facts(path: Path, verify: bool) -> Facts:
    from model_surgery.layout import Layout, damaged_tensors

    layout = Layout.load(path)
    if verify and (damaged := damaged_tensors(path, layout)):
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise RecipeError(f"{path}: tensor {damaged[0]}{more}: bytes are not those recorded; run the stage again")
    facts: Facts = {
        "kind": "tensor-parallel layout",
        "tensor parallel": layout.tensor_parallel,
        "position embedding": layout.position_embedding,
        "parameters": f"{layout.shape.parameters:,}",
        "trained": f"{layout.trained_steps:,} steps, {layout.trained_tokens:,} tokens",
        "source": layout.source,
        "digest": layout.digest(),
        "shape": ", ".join(f"{key} {value}" for key, value in layout.shape.model_dump().items()),
    }
    return facts | ({"digests": "all tensors as recorded"} if verify else {})


def _training_checkpoint_facts(path: Path, verify: bool) -> Facts:
    from pipeline.recalibration.checkpoints.folders import is_complete
    from pipeline.recalibration.checkpoints.intact import damage
    from pipeline.recalibration.checkpoints.state import DeepSpeedState, read_state

    if (state := read_state(path)) is None:
        raise RecipeError(f"{path}: no state.json")
    if verify and (problem := damage(path)):
        raise RecipeError(f"{path}: {problem}; use another checkpoint")
    facts: Facts = {
        "kind": "training checkpoint",
        "complete": "yes" if is_complete(path) else "no: its save was cut off",
        "step": f"{state.step:,}, {state.tokens:,} tokens",
        "tensor parallel": state.tensor_parallel,
        "position embedding": state.position_embedding,
        "parameters": f"{state.shape.parameters:,}",
        "source": state.source,
    }
    if isinstance(state, DeepSpeedState):
        ranks = f"by DeepSpeed, {state.data_parallel} data-parallel ranks at ZeRO stage {state.zero_stage}"
        return facts | {"stored": ranks} | ({"bytes": "as written"} if verify else {})
    facts |= {"stored": "as layouts"}
    facts |= {f"{part} digest": digest for part, digest in state.digests.items()}
    return facts | ({"digests": "all tensors as recorded"} if verify else {})


def _shards_facts(path: Path, verify: bool) -> Facts:
    from data_prep.artifact import ShardSet
    from data_prep.inspection import damaged_shards, sample_rows, statistics

    shards = ShardSet.load(path)
    if verify and (damaged := damaged_shards(shards, path)):
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        raise RecipeError(f"{path / damaged[0].prefix}{more}: its bytes are not those recorded; prepare the data again")
    facts: Facts = {
        "kind": "shards",
        "tokenizer": f"{shards.tokenizer} ({shards.vocab_size:,} ids, EOS {shards.eos_id})",
        "row length": f"{shards.row_length} tokens",
        "stored as": shards.dtype,
        "shards digest": shards.digest,
        **statistics(shards, path),
        "first training rows": sample_rows(shards, path, _SHOWN_ROWS),
    }
    return facts | ({"digests": "all shards as recorded"} if verify else {})


def _shard_facts(path: Path, verify: bool) -> Facts:
    from data_prep.megatron import IndexedDataset
    from data_prep.shards import document_lengths

    _refuse_verify(path, verify)
    for suffix in (".bin", ".idx"):
        if not path.with_suffix(suffix).is_file():
            raise RecipeError(f"{path.with_suffix(suffix)}: no such file; a shard is a .bin and an .idx file")
    document_lengths(path.with_suffix(""))  # refuses what is none before Megatron maps it
    dataset = IndexedDataset(str(path.with_suffix("")))
    tokens = int(dataset.sequence_lengths.sum())
    return {
        "kind": "Megatron shard",
        "documents": f"{len(dataset.document_indices) - 1:,}",
        "tokens": f"{tokens:,}",
        "stored as": dataset.index.dtype.__name__,
        "first document": f"{dataset[0][:12].tolist()} ...",
    }


def _checkpoint_facts(path: Path, verify: bool) -> Facts:
    from model_surgery.checkpoint import Checkpoint, weight_files
    from model_surgery.rotation import rotating_layers

    _refuse_verify(path, verify)
    config = read_json(path / "config.json")
    facts: Facts = {
        "kind": "Hugging Face checkpoint",
        "architecture": ", ".join(config.get("architectures") or ["unknown"]),
        "weights": f"{sum(file.stat().st_size for file in weight_files(path)):,} bytes",
    }
    facts |= {f"drope {key}": value for key, value in config.get("drope", {}).items()}
    rotates = bool(rotating_layers(config))
    facts["positional embedding"] = "RoPE" if rotates else "none"
    if "drope" in config and not (rotates and config.get("model_type") in ("llama", "qwen2")):
        return facts  # an export of a class or with fields that surgery does not take as a source
    with Checkpoint(path) as checkpoint:
        facts["parameters"] = f"{checkpoint.shape.parameters:,}"
        facts["shape"] = ", ".join(f"{key} {value}" for key, value in checkpoint.shape.model_dump().items())
    return facts


def _refuse_verify(path: Path, verify: bool) -> None:
    if verify:
        raise RecipeError(f"--verify: nothing records the digests of {path}; verify the folder that it came in")


_KINDS = (
    (lambda path: (path / "recipe.yaml").is_file(), _run_facts),
    (lambda path: (path / MANIFEST_FILE).is_file(), _stage_facts),
    (lambda path: (path / "layout.json").is_file(), _layout_facts),
    (lambda path: (path / "state.json").is_file(), _training_checkpoint_facts),
    (lambda path: (path / "shards.json").is_file(), _shards_facts),
    (lambda path: path.suffix in (".bin", ".idx"), _shard_facts),
    (lambda path: (path / "config.json").is_file(), _checkpoint_facts),
)
