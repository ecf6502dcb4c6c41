"""Whole checkpoints are read, damaged ones are refused before anything is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from model_surgery.checkpoint import Checkpoint, fingerprint, weight_files
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.errors import SurgeryError

NORM, HEAD, EMBEDDING = "model.norm.weight", "lm_head.weight", "model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"


def rewrite(folder: Path, **changes: torch.Tensor | None) -> Path:
    """Puts tensors into the single weight file; None takes one out."""
    tensors = load_file(folder / "model.safetensors") | {name.replace("__", "."): t for name, t in changes.items()}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    return folder


def set_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refusal(folder: Path) -> str:
    with pytest.raises(SurgeryError) as refused, Checkpoint(folder):
        raise AssertionError("the checkpoint was taken")
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def sharded(tiny_model: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(folder, max_shard_size="30KB")
    assert (folder / INDEX).is_file()
    return folder


def test_every_tensor_is_the_one_that_transformers_loads(tiny_model: Path) -> None:
    expected = AutoModelForCausalLM.from_pretrained(tiny_model).state_dict()
    with Checkpoint(tiny_model) as checkpoint:
        for name, tensor in expected.items():
            assert torch.equal(checkpoint.tensor(name), tensor)


def test_a_sharded_checkpoint_equals_the_single_file(tiny_model: Path, sharded: Path, tmp_path: Path) -> None:
    assert len(weight_files(sharded)) > 2
    one = convert(SurgeryConfig(), source=tiny_model, out_dir=tmp_path / "one")
    many = convert(SurgeryConfig(), source=sharded, out_dir=tmp_path / "many")
    assert one.digest() == many.digest()


def test_missing_extra_and_misshapen_tensors_are_named(model_copy: Path) -> None:
    layer = "model.layers.1.self_attn.q_proj.weight"
    whole = load_file(model_copy / "model.safetensors")
    assert f"missing tensor {layer};" in refusal(rewrite(model_copy, **{layer: None}))
    extra = "model.layers.1.self_attn.q_proj.bias"
    rewrite(model_copy, **{layer: whole[layer], extra: torch.zeros(32)})
    assert f"unexpected tensor {extra};" in refusal(model_copy)
    rewrite(model_copy, **{extra: None, NORM: torch.ones(31)})
    assert f"{NORM} has shape [31], config.json says [32]" in refusal(model_copy)


def test_rotary_buffers_of_old_versions_are_passed_over(model_copy: Path) -> None:
    rewrite(model_copy, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    with Checkpoint(model_copy) as checkpoint:
        assert checkpoint.tensor(NORM).shape == (32,)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_is_found_and_nothing_is_left(
    value: float, model_copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_surgery.layout_writer._WAITING_BYTES", 1)  # all before the bad tensor is written by then
    bad = torch.ones(32)
    bad[7] = value
    rewrite(model_copy, **{NORM: bad})
    out = tmp_path / "layout"
    with pytest.raises(SurgeryError, match=f"tensor {NORM} holds NaN or infinity"):
        convert(SurgeryConfig(), source=model_copy, out_dir=out)
    assert list(out.iterdir()) == []


def test_quantised_weights_are_refused(model_copy: Path) -> None:
    rewrite(model_copy, **{NORM: torch.ones(32, dtype=torch.int8)})
    assert f"{NORM} is of dtype I8; supported: F32, BF16, F16" in refusal(model_copy)


def test_a_cut_file_is_refused(model_copy: Path) -> None:
    path = model_copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "model.safetensors: not a readable safetensors file" in refusal(model_copy)


def test_index_errors_are_named(sharded: Path) -> None:
    index = json.loads((sharded / INDEX).read_text())

    def with_file(name: str) -> str:
        index["weight_map"][NORM] = name
        (sharded / INDEX).write_text(json.dumps(index))
        return refusal(sharded)

    first, second = weight_files(sharded)[:2]
    assert "nowhere.safetensors: no such file, though" in with_file("nowhere.safetensors")
    assert "names '../model.safetensors', which is not a file of this folder" in with_file("../model.safetensors")
    assert "is not a file of this folder" in with_file("/etc/hostname")
    assert f"no such file, though {INDEX} names it" in with_file("..")
    index["weight_map"][NORM] = first.name
    (sharded / INDEX).write_text(json.dumps(index))
    save_file(load_file(first) | load_file(second), second)
    assert "is in another file too" in refusal(sharded)
    (sharded / INDEX).write_text('{"weight_map": 3, "metadata": {}}')
    assert f"{INDEX}: holds no weight_map or no metadata" in refusal(sharded)


def test_no_weights_are_refused(model_copy: Path) -> None:
    (model_copy / "model.safetensors").unlink()
    assert "holds none of model.safetensors, " in refusal(model_copy)


def test_a_single_file_goes_before_an_index_as_in_transformers(model_copy: Path, sharded: Path) -> None:
    for path in sharded.glob("model-*.safetensors"):
        (model_copy / path.name).write_bytes(path.read_bytes())
    (model_copy / INDEX).write_bytes((sharded / INDEX).read_bytes())
    rewrite(model_copy, **{NORM: torch.full((32,), 3.0)})
    assert AutoModelForCausalLM.from_pretrained(model_copy).model.norm.weight[0] == 3.0
    with Checkpoint(model_copy) as checkpoint:
        assert checkpoint.tensor(NORM)[0] == 3.0


def test_a_tied_checkpoint_stored_under_its_head_only(small_llama: Path, tmp_path: Path) -> None:
    """As the published TinyStories-656K is."""
    folder = Path(shutil.copytree(small_llama, tmp_path / "model"))
    stored = load_file(folder / "model.safetensors")
    stored[HEAD] = stored.pop(EMBEDDING)
    save_file(stored, folder / "model.safetensors")
    with Checkpoint(folder) as checkpoint:
        assert torch.equal(checkpoint.tensor(EMBEDDING), stored[HEAD])


def test_a_tied_flag_with_another_head_is_refused(model_copy: Path) -> None:
    set_config(model_copy, tie_word_embeddings=True)
    assert "the file holds another one; set tie_word_embeddings to false" in refusal(model_copy)
    rewrite(model_copy, **{HEAD: load_file(model_copy / "model.safetensors")[EMBEDDING]})
    with Checkpoint(model_copy) as checkpoint:
        assert checkpoint.shape.tied


def test_an_untied_flag_without_a_head_is_refused(model_copy: Path) -> None:
    assert f"missing tensor {HEAD};" in refusal(rewrite(model_copy, **{HEAD: None}))


def test_the_fingerprint_sees_weights_and_config(model_copy: Path, tmp_path: Path) -> None:
    before = fingerprint(model_copy)
    assert fingerprint(model_copy) == before
    rewrite(model_copy, **{NORM: torch.full((32,), 3.0)})
    changed = fingerprint(model_copy)
    assert changed != before
    set_config(model_copy, rms_norm_eps=1e-6)
    assert fingerprint(model_copy) not in (before, changed)
    with pytest.raises(SurgeryError, match=r"config\.json: no such file; model\.path must name"):
        fingerprint(tmp_path)


@pytest.mark.parametrize(("used", "unused"), [("q", "k"), ("k", "q")])
def test_the_unused_norm_of_a_published_drope_model_is_passed_over(used: str, unused: str, model_copy: Path) -> None:
    """Its code makes both norms whichever it uses, so the checkpoint holds both."""
    set_config(model_copy, model_type="llama_drope", attention_type=f"{used}_norm_nope")
    width = {"q": 32, "k": 16}
    names = {part: [f"model.layers.{layer}.self_attn.{part}_norm.weight" for layer in range(2)] for part in "qk"}
    rewrite(model_copy, **{name: torch.ones(width[part]) for part in "qk" for name in names[part]})
    with Checkpoint(model_copy) as checkpoint:
        assert checkpoint.tensor(names[used][0]).shape == (width[used],)
        with pytest.raises(KeyError):
            checkpoint.tensor(names[unused][0])
    rewrite(model_copy, **dict.fromkeys(names[unused]))
    with Checkpoint(model_copy):
        pass
    set_config(model_copy, attention_type="nope")
    assert f"unexpected tensor {names[used][0]} and 1 more;" in refusal(model_copy)
    set_config(model_copy, attention_type="qk_norm_nope")
    assert f"missing tensor {names[unused][0]} and 1 more;" in refusal(model_copy)
