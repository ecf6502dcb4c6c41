"""The exported folder in stock transformers, against the source checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM, SmolLM3ForCausalLM

from foundation.errors import DiskError
from model_surgery import export
from model_surgery.architectures import Rule
from model_surgery.checkpoint import Checkpoint, weight_files
from model_surgery.config import ExportConfig, SurgeryConfig
from model_surgery.convert import convert
from model_surgery.errors import SurgeryError
from model_surgery.export import weights
from model_surgery.layout import LAYOUT_FILE, Layout, read_rank
from model_surgery.layout_writer import LayoutWriter
from model_surgery.verification.verify import source_logits

TOKENS = torch.randint(96, (2, 32), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def trained(layouts: dict[int, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """What training leaves of the TP 2 layout, the weights as they were: slices taken out and written again."""

    def make(position_embedding: str) -> Path:
        layout, folder = Layout.load(layouts[2]), tmp_path_factory.mktemp("trained")
        states = [read_rank(layouts[2], layout, rank) for rank in range(2)]
        with LayoutWriter(folder, layout.shape, 2) as writer:
            for entry in layout.tensors:
                rule = Rule(entry.target, entry.sources, entry.join)
                writer.put_slices(rule, [state[entry.target] for state in states])
            writer.finish(
                position_embedding=position_embedding,
                source=layout.source,
                source_fingerprint=layout.source_fingerprint,
                trained_steps=7,
                trained_tokens=3584,
            )
        return folder

    return make


def run(
    layout: Path, source: Path, out: Path, export_check: Path | None = None, **settings: object
) -> dict[str, object]:
    return export.run(
        ExportConfig(**settings), layout_dir=layout, source=source, out_dir=out, export_check=export_check
    )


@pytest.fixture(scope="module")
def exported(
    trained: Callable[[str], Path], tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The tiny model exported without positional embeddings and with RoPE; not to be written to."""
    folders = {kind: tmp_path_factory.mktemp("export") / kind for kind in ("none", "rope")}
    for kind, folder in folders.items():
        run(trained(kind), tiny_model, folder)
    return folders


@pytest.fixture
def export_check(tiny_model: Path, tmp_path: Path) -> Path:
    """Tokens, labels and losses of the source without positional embeddings."""
    tokens, labels = TOKENS[:, :-1].contiguous(), TOKENS[:, 1:].contiguous()
    logits = source_logits(tiny_model, tokens, identity_rotation=True)
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
    save_file({"tokens": tokens, "labels": labels, "losses": losses.reshape(labels.shape)}, tmp_path / "export_check")
    return tmp_path / "export_check"


@pytest.mark.parametrize("kind", ["none", "rope"])
def test_tensors_are_byte_identical_to_the_source(kind: str, exported: dict[str, Path], tiny_model: Path) -> None:
    source = load_file(tiny_model / "model.safetensors")
    got = {name: tensor for path in weight_files(exported[kind]) for name, tensor in load_file(path).items()}
    assert got.keys() == source.keys()
    for name, tensor in source.items():
        assert got[name].dtype == tensor.dtype
        assert torch.equal(got[name].view(torch.uint8), tensor.view(torch.uint8))


@pytest.mark.parametrize(("kind", "expected"), [("none", SmolLM3ForCausalLM), ("rope", LlamaForCausalLM)])
def test_stock_transformers_computes_what_the_source_computes(
    kind: str, expected: type, exported: dict[str, Path], tiny_model: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported[kind]).eval()
    assert type(model) is expected
    with torch.inference_mode():
        logits = model(TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=False).logits
    source = source_logits(tiny_model, TOKENS, identity_rotation=kind == "none")
    torch.testing.assert_close(logits, source, rtol=0, atol=1e-6)
    assert (logits - source_logits(tiny_model, TOKENS, identity_rotation=kind != "none")).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["none", "rope"])
def test_generation_with_cache_equals_without(kind: str, exported: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(exported[kind]).eval()
    settings = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS[:, :8])
    cached, uncached = (
        model.generate(TOKENS[:, :8], attention_mask=mask, use_cache=use_cache, **settings)
        for use_cache in (True, False)
    )
    assert cached.shape == (2, 28)
    assert torch.equal(cached, uncached)


def test_special_ids_are_the_sources_and_none_stays_none(exported: dict[str, Path], tiny_model: Path) -> None:
    config, source = AutoConfig.from_pretrained(exported["none"]), AutoConfig.from_pretrained(tiny_model)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, 1, None)
    for key in ("vocab_size", "rms_norm_eps", "max_position_embeddings", "tie_word_embeddings", "head_dim"):
        assert getattr(config, key) == getattr(source, key)
    assert config.no_rope_layers == [0, 0]
    assert config.drope == {"trained_steps": 7, "trained_tokens": 3584}
    generation = AutoModelForCausalLM.from_pretrained(exported["none"]).generation_config
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (None, 1, None)


def test_a_real_tied_checkpoint(smollm2_two_layers: Path, tmp_path: Path) -> None:
    source_dir = smollm2_two_layers
    convert(SurgeryConfig(tensor_parallel=3), source=source_dir, out_dir=tmp_path / "layout")
    facts = run(tmp_path / "layout", source_dir, tmp_path / "export")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype=torch.float32).eval()
    assert type(model) is SmolLM3ForCausalLM
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    with torch.inference_mode():
        logits = model(TOKENS, attention_mask=torch.ones_like(TOKENS), use_cache=False).logits
    torch.testing.assert_close(logits, source_logits(source_dir, TOKENS, identity_rotation=True), rtol=0, atol=1e-4)
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, 2, 2)
    with Checkpoint(source_dir) as source:
        embedding = source.tensor("model.embed_tokens.weight")
    assert torch.equal(model.get_input_embeddings().weight, embedding)
    assert torch.equal(model.get_output_embeddings().weight, embedding)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_dtype_of_the_export(
    dtype: str, trained: Callable[[str], Path], tiny_model: Path, export_check: Path, tmp_path: Path
) -> None:
    facts = run(trained("none"), tiny_model, tmp_path / "export", export_check, dtype=dtype)
    assert facts["dtype"] == dtype
    assert 0 < facts["mean_difference"] < facts["limit"]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "export", dtype="auto")
    assert {str(parameter.dtype) for parameter in model.parameters()} == {f"torch.{dtype}"}
    source = load_file(tiny_model / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source[name].to(getattr(torch, dtype)))


def test_shards_and_their_index(
    trained: Callable[[str], Path],
    exported: dict[str, Path],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(weights, "_SHARD_BYTES", 25_000)
    run(trained("none"), tiny_model, tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    stored = {name: file for file in files for name in load_file(tmp_path / file)}
    assert index["weight_map"] == stored
    source = load_file(tiny_model / "model.safetensors")
    assert stored.keys() == source.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in source.values())
    one, many = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (exported["none"], tmp_path))
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_the_trained_models_losses_must_come_back(
    trained: Callable[[str], Path], tiny_model: Path, export_check: Path, tmp_path: Path
) -> None:
    facts = run(trained("none"), tiny_model, tmp_path / "right", export_check)
    assert facts["mean_difference"] < 1e-6
    assert facts["probe_tokens"] == 62
    assert "| export check | loss" in (tmp_path / "right" / "README.md").read_text()
    with pytest.raises(SurgeryError, match="the exported model's loss differs from the trained one's"):
        run(trained("rope"), tiny_model, tmp_path / "wrong kind", export_check)
    assert not (tmp_path / "wrong kind").exists()
    values = load_file(export_check)
    for change in (0.001, torch.nan):
        save_file(values | {"losses": values["losses"] + change}, tmp_path / "other")
        with pytest.raises(SurgeryError, match="the exported model's loss differs"):
            run(trained("none"), tiny_model, tmp_path / "wrong losses", tmp_path / "other")
        assert not (tmp_path / "wrong losses").exists()


def test_a_damaged_layout_is_refused_and_nothing_is_left(layout_copy: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = layout_copy / "tp01-0000.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(SurgeryError, match=r"tp01-0000\.safetensors: .* is damaged"):
        run(layout_copy, tiny_model, tmp_path / "export")
    assert not (tmp_path / "export").exists()
    (layout_copy / LAYOUT_FILE).unlink()
    with pytest.raises(SurgeryError, match=r"layout\.json: no such file"):
        run(layout_copy, tiny_model, tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_weights_that_the_dtype_cannot_hold_are_refused(make_shape: Callable, tiny_model: Path, tmp_path: Path) -> None:
    layout = convert(SurgeryConfig(), source=tiny_model, out_dir=tmp_path / "one")
    state = read_rank(tmp_path / "one", layout, 0)
    state["decoder.final_layernorm.weight"][3] = 1e5
    with LayoutWriter(tmp_path / "large", layout.shape, 1) as writer:
        for entry in layout.tensors:
            writer.put_slices(Rule(entry.target, entry.sources, entry.join), [state[entry.target]])
        writer.finish(position_embedding="none", source="s", source_fingerprint="f")
    with pytest.raises(SurgeryError, match=r"model\.norm\.weight: .* too large for torch\.float16"):
        run(tmp_path / "large", tiny_model, tmp_path / "export", dtype="float16")
    assert not (tmp_path / "export").exists()


def test_a_full_disk_is_bad_input(trained: Callable[[str], Path], tiny_model: Path, small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(40_000))
    with pytest.raises(DiskError, match="the disk is full") as refused:
        run(trained("none"), tiny_model, small_disk / "export")
    assert "\n" not in str(refused.value)
    assert [path.name for path in small_disk.iterdir()] == ["other"]
