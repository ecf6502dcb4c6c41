"""What `drope inspect` says of single things, whole and damaged. Whole runs: test_run_local.py."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data_prep import prepare
from data_prep.config import DataConfig
from data_prep.errors import DataError
from model_surgery.errors import SurgeryError
from pipeline.demo.run import MODEL
from pipeline.errors import RecipeError
from pipeline.tools.inspect import inspect_path


@pytest.fixture(scope="module")
def shards(tiny_model: Path, documents: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    config = DataConfig(sources=({"path": str(documents)},), row_length=32, validation_fraction=0.1)
    prepare.run(config, tokenizer=tiny_model, model_vocab_size=96, out_dir=folder)
    return folder


def test_an_exported_model_that_kept_rope_is_not_called_free_of_it() -> None:
    facts = inspect_path(MODEL)  # written by the export of a run with position_embedding: rope
    assert facts["drope trained_steps"] == 3000
    assert facts["positional embedding"] == "RoPE"
    assert facts["parameters"] == "176,960"


def test_shards_are_verified_by_their_bytes(shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(shards, tmp_path / "shards")
    assert inspect_path(folder, verify=True)["digests"] == "all shards as recorded"
    victim = next(folder.glob("shards/*-train.bin"))
    content = bytearray(victim.read_bytes())
    content[7] ^= 1
    victim.write_bytes(content)
    assert inspect_path(folder)["kind"] == "shards"
    with pytest.raises(RecipeError, match="train: its bytes are not those recorded"):
        inspect_path(folder, verify=True)


def test_verify_of_what_has_no_digests_is_refused(shards: Path, tiny_model: Path) -> None:
    for path in (tiny_model, next(shards.glob("shards/*.bin"))):
        with pytest.raises(RecipeError, match="nothing records the digests"):
            inspect_path(path, verify=True)


def test_half_a_shard_and_a_false_index_are_refused(shards: Path, tmp_path: Path) -> None:
    shutil.copyfile(next(shards.glob("shards/*.bin")), tmp_path / "half.bin")
    with pytest.raises(RecipeError, match=r"half\.idx: no such file"):
        inspect_path(tmp_path / "half.bin")
    (tmp_path / "half.idx").write_bytes(b"no index")
    with pytest.raises(DataError, match=r"half\.idx: not the index"):
        inspect_path(tmp_path / "half.bin")


@pytest.mark.parametrize("content", [b'{"schema_ver', b"\xff\xfe", b"[]", b'{"schema_version": 1}'])
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(RecipeError, match=r"manifest\.json: not a stage's manifest\.json") as caught:
        inspect_path(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", r"not valid JSON \(Expecting property name"), ("[]", "holds a JSON list, not an object")],
)
def test_a_damaged_config_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SurgeryError, match=rf"/config\.json: {problem}"):
        inspect_path(tmp_path)


@pytest.mark.real_processes
def test_a_path_that_cannot_be_is_one_line(drope: Callable, tmp_path: Path) -> None:
    result = drope("inspect", tmp_path / ("x" * 300))
    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("family", "norms", "position_embedding", "expected", "architecture"),
    [
        ("llama", "none", "none", "auto", "SmolLM3ForCausalLM"),
        ("llama", "none", "none", "identity_rope", "LlamaForCausalLM"),
        ("qwen2", "per_head", "none", "auto", "Qwen3ForCausalLM"),
        ("qwen2", "per_head", "none", "identity_rope", "Qwen3ForCausalLM"),
        ("qwen2", "per_head", "rope", "auto", "Qwen3ForCausalLM"),
        ("llama", "full", "none", "auto", "DroPELlamaForCausalLM"),
        ("llama", "full", "rope", "auto", "DroPELlamaForCausalLM"),
        ("qwen2", "none", "rope", "auto", "Qwen2ForCausalLM"),
        ("qwen2", "none", "rope", "identity_rope", "Qwen2ForCausalLM"),
    ],
)
def test_exports_of_every_class(
    family: str,
    norms: str,
    position_embedding: str,
    expected: str,
    architecture: str,
    tiny_model: Path,
    qwen2_model: Path,
    tmp_path: Path,
) -> None:
    from model_surgery import export
    from model_surgery.config import ExportConfig, SurgeryConfig
    from model_surgery.convert import convert

    source = {"llama": tiny_model, "qwen2": qwen2_model}[family]
    layout = convert(SurgeryConfig(qk_norm=norms), source=source, out_dir=tmp_path / "layout")
    changed = layout.model_copy(update={"position_embedding": position_embedding})
    (tmp_path / "layout" / "layout.json").write_text(changed.model_dump_json())
    config = ExportConfig(format=expected, softmax_scale={"beta": 1.5, "apply": "config"})
    export.run(config, layout_dir=tmp_path / "layout", source=source, out_dir=tmp_path / "export", export_check=None)
    facts = inspect_path(tmp_path / "export")
    assert facts["architecture"] == architecture
    assert facts["positional embedding"] == {"none": "none", "rope": "RoPE"}[position_embedding]
    assert facts["drope softmax_scale"] == {"beta": 1.5, "apply": "config"}
