"""Validation in the run: the rows, recall, and all numbers in real processes against transformers' model."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

from data_prep.artifact import ShardSet
from data_prep.rows import RowDataset, build_rows
from model_surgery.config import SurgeryConfig
from model_surgery.convert import convert
from model_surgery.qk_norm import initial_norms, with_qk_norm
from model_surgery.shape import read_shape
from model_surgery.verification.reference import whole_model
from pipeline.errors import RecipeError
from pipeline.launch.processes import torchrun
from pipeline.recalibration.checks import check_validation
from pipeline.recalibration.metrics import read_validation
from pipeline.recalibration.metrics.validation_result import ValidationResult, write_validation
from pipeline.recalibration.validation import recall
from pipeline.recalibration.validation.validation import held_out_rows, position_sums, rows_at_once
from pipeline.recipe.recalibration import RecalibrationConfig
from tests.pipeline.recalibration.induction import VOCAB, write_induction_model

EOS, ROW, LR = 1, 32, 3e-3
Settings = Callable[..., RecalibrationConfig]


def whole(rows: RowDataset, indices: list[int]) -> dict[str, torch.Tensor]:
    items = [rows[index] for index in indices]
    return {key: torch.stack([item[key] for item in items]) for key in items[0]}


@pytest.fixture(scope="session")
def two_sources(write_shards: Callable[..., ShardSet], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random documents in the ids of the induction model; the second source holds little out."""
    folder, draw = tmp_path_factory.mktemp("two-sources"), torch.Generator().manual_seed(0)

    def documents(number: int) -> list[list[int]]:
        lengths = torch.randint(20, 80, (number,), generator=draw).tolist()
        return [[*torch.randint(2, VOCAB, (length,), generator=draw).tolist(), EOS] for length in lengths]

    sources = ((3.0, documents(30), documents(12)), (1.0, documents(30), documents(2)))
    write_shards(folder, *sources, vocab_size=VOCAB, eos_id=EOS, row_length=ROW)
    return folder


@pytest.mark.parametrize("mask_documents", [False, True])
def test_rows_at_the_training_length_are_those_of_the_training(
    mask_documents: bool, two_sources: Path, settings: Settings, tmp_path: Path
) -> None:
    shards, sizes = ShardSet.load(two_sources), {"train_rows": 80, "validation_rows": 7}
    expected = build_rows(shards, two_sources, mask_documents=mask_documents, cache_dir=tmp_path, **sizes).validation
    config = settings(mask_documents=mask_documents)
    got = held_out_rows(config, shards, two_sources, 1, tmp_path)
    assert len(got) == len(expected) == 7
    for index in range(7):
        assert all(torch.equal(got[index][name], tensor) for name, tensor in expected[index].items())
    longer = held_out_rows(config, shards, two_sources, 4, tmp_path)
    assert (len(longer), longer[0]["tokens"].shape) == (1, (4 * ROW,))
    assert len(held_out_rows(settings(validation_rows=64), shards, two_sources, 4, tmp_path)) < 16  # all there are


def test_lengths_that_held_out_documents_are_too_few_for_are_refused(two_sources: Path, settings: Settings) -> None:
    shards = ShardSet.load(two_sources)
    most = max(source.validation.tokens for source in shards.sources)
    check_validation(settings(validation_lengths=[1, (most - 1) // ROW]), shards)
    expected = rf"at 1000x: a row of 32,000 tokens needs a source with 32,001 held-out tokens, the largest has {most}; "
    with pytest.raises(
        RecipeError, match=expected + "take 1000 out of recalibration.validation_lengths, or raise data"
    ):
        check_validation(settings(validation_lengths=[1, 4, 1000]), shards)
    check_validation(settings(recall_samples=1), shards.model_copy(update={"row_length": 31}))
    with pytest.raises(RecipeError, match="recall_samples = 3: a sequence of 16 tokens does not fit twice into a row"):
        check_validation(settings(recall_samples=3), shards.model_copy(update={"row_length": 30}))


def test_recall_rows_hold_their_sequence_twice(two_sources: Path, settings: Settings, tmp_path: Path) -> None:
    rows = held_out_rows(settings(), ShardSet.load(two_sources), two_sources, 2, tmp_path)
    make = {"samples": 9, "eos_id": EOS}
    probes = recall.recall_rows(rows, seed=5, **make)
    assert probes.shape == (9, 2 * ROW + 1)
    depths = set()
    for number, probe in enumerate(probes):
        sequence = probe[-16:].tolist()
        windows = [probe[start : start + 16].tolist() for start in range(2 * ROW + 1 - 31)]
        depth = windows.index(sequence)
        depths.add(depth)
        assert len(set(sequence)) == 16 and EOS not in sequence
        row = rows[number % len(rows)]
        kept = torch.ones(2 * ROW + 1, dtype=torch.bool)
        kept[depth : depth + 16] = kept[-16:] = False
        assert torch.equal(probe[kept], torch.cat([row["tokens"], row["labels"][-1:]])[kept])
    assert len(depths) > 4
    assert torch.equal(probes, recall.recall_rows(rows, seed=5, **make))
    assert not torch.equal(probes, recall.recall_rows(rows, seed=6, **make))
    few = [{name: tensor % 5 for name, tensor in rows[0].items()}]
    assert set(recall.recall_rows(few, seed=5, **make)[0, -16:].tolist()) == {0, 2, 3, 4}


def test_recalled_is_the_share_of_probabilities_above_a_half() -> None:
    probabilities = torch.full((2, 40), 0.9)
    probabilities[0, -12:] = torch.tensor([0.51] * 3 + [0.49] * 9)
    probabilities[1, -16:-12] = 0.1  # the cue
    assert recall.recalled(-probabilities.log()).tolist() == [0.25, 1.0]


def test_position_sums_by_hand() -> None:
    losses = torch.arange(64.0).reshape(2, 32)
    counted = losses != 33
    sums = position_sums(losses, counted)
    assert sums.shape == (2, 16) and sums.dtype is torch.float64
    assert sums[:, 0].tolist() == [0 + 1 + 32, 3]
    assert sums[:, 15].tolist() == [30 + 31 + 62 + 63, 4]
    assert torch.equal(position_sums(losses, None).sum(1), torch.tensor([losses.sum(), 64.0], dtype=torch.float64))


def test_lines_of_steps_that_are_done_again_are_taken_off(tmp_path: Path) -> None:
    def measured(loss: float) -> ValidationResult:
        return ValidationResult({1: loss, 2: loss + 1}, {1: 0.5, 2: 0.25}, longest=64, by_position=[loss, float("nan")])

    for step, loss in ((0, 5.0), (10, 4.0), (20, float("inf")), (10, 3.0)):
        write_validation(tmp_path, step, measured(loss))
    with (tmp_path / "validation.jsonl").open("a") as file:
        file.write('{"step": 20, "validation_lo')
    write_validation(tmp_path, 20, measured(float("inf")))
    first, second, third = read_validation(tmp_path)
    numbers = {"validation_loss": 3.0, "validation_loss_2x": 4.0, "recall_1x": 0.5, "recall_2x": 0.25}
    assert (first["step"], second) == (0, {"step": 10, **numbers, "by_position": {"64": [3.0, None]}})
    assert (third["step"], third["validation_loss"]) == (20, None)
    assert measured(3.0).scalars() == numbers


# Real processes


def blocked(documents: torch.Tensor) -> torch.Tensor:
    """Additive mask [rows, 1, length, length] of causal attention within documents."""
    length = documents.shape[1]
    other = documents[:, :, None] != documents[:, None, :]
    return torch.where(other | torch.ones(length, length).triu(1).bool(), -1e30, 0.0)[:, None]


class Reference:
    """transformers' own model on rows, at the same numbers as the training's processes."""

    def __init__(self, model: torch.nn.Module) -> None:
        from transformers import AttentionInterface
        from transformers.models.llama.modeling_llama import eager_attention_forward, repeat_kv

        self.model, self.maxima = model, []

        def eager(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float, **options: Any) -> Any:
            keys = repeat_kv(key, module.num_key_value_groups)
            self.maxima.append((query @ keys.mT * scaling + mask).amax().item())
            return eager_attention_forward(module, query, key, value, mask, scaling, **options)

        AttentionInterface.register("watched", eager)
        model.config._attn_implementation = "watched"

    def losses(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """[rows, length]; `maxima` then holds the largest logit of every layer."""
        tokens, self.maxima = batch["tokens"], []
        mask = blocked(batch.get("documents", torch.zeros_like(tokens)))
        logits = self.model(tokens, attention_mask=mask, use_cache=False).logits
        return cross_entropy(logits.flatten(0, 1), batch["labels"].flatten(), reduction="none").view_as(tokens)

    def mean(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        losses = self.losses(batch)
        return losses[batch["counted"]].mean() if "counted" in batch else losses.mean()

    def recall(self, probes: torch.Tensor) -> float:
        """Share of the last 12 labels with a probability above 1/2."""
        losses = self.losses({"tokens": probes[:, :-1], "labels": probes[:, 1:]})
        return ((-losses[:, -12:]).exp() > 0.5).double().mean().item()


def below_zero(source: Path, folder: Path) -> Path:
    """The Qwen2 with biases such that no query agrees with any key: every attention logit is below 0."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.bias", "k_proj.bias")):
            tensor.copy_(torch.full_like(tensor, 20.0 if "q_proj" in name else -20.0))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text((source / "config.json").read_text())
    return folder


def case(
    name: str, source: Path, shards: Path, config: RecalibrationConfig, position: str, qk_norm: str, folder: Path
) -> dict[str, Any]:
    """A layout for TP 2 with drawn norms, what the worker needs to know of it, and transformers' model of it."""
    shape = read_shape(source)
    normed, draw = with_qk_norm(shape, qk_norm, name), torch.Generator().manual_seed(0)
    norms = {n: torch.rand(len(one), generator=draw) + 0.5 for n, one in initial_norms(shape, normed).items()}
    layout, out = folder / f"{name}-layout", folder / name
    convert(SurgeryConfig(tensor_parallel=2, qk_norm=qk_norm), source=source, out_dir=layout, norms=norms)
    out.mkdir()
    model = whole_model(source, normed, identity_rotation=position == "none", norms=norms)
    inputs = {"layout": str(layout), "shards": str(shards), "out": str(out), "position": position, "tensor_parallel": 2}
    return {"case": inputs | {"config": config.model_dump(mode="json")}, "norms": norms, "model": model}


@pytest.mark.slow
def test_all_numbers_are_those_of_transformers(
    models: dict[str, Path], shards: Path, two_sources: Path, settings: Settings, tmp_path: Path
) -> None:
    """TP 2 x DP 2. odd, below-zero: heads of zeros beside the true ones. Every case is at 1x, 2x and 4x."""
    lengths = {"validation_lengths": [1, 2, 4], "recall_samples": 5}
    masked = settings(mask_documents=True, zero_stage=3, validation_lengths=[1, 4, 2])
    repeating = settings(**lengths, validation_rows=16, zero_stage=1)
    (tmp_path / "induction").mkdir()
    induction = write_induction_model(tmp_path / "induction")
    negative = below_zero(models["qwen2"], tmp_path / "below-zero")
    twice = settings(zero_stage=2, recompute="full")
    cases = {
        "odd": case("odd", models["odd"], shards, masked, "none", "full", tmp_path),
        "rope": case("rope", induction, two_sources, repeating, "rope", "none", tmp_path),
        "dropped": case("dropped", induction, two_sources, repeating, "none", "none", tmp_path),
        "negative": case("negative", negative, shards, twice, "none", "per_head", tmp_path),
    }
    cases_file = tmp_path / "cases.json"
    cases_file.write_text(json.dumps([prepared["case"] for prepared in cases.values()]))
    torchrun("tests.pipeline.recalibration.validation_worker", [str(cases_file)], processes=4, log=tmp_path / "log")
    results = {name: [json.loads((tmp_path / name / f"rank-{r}.json").read_text()) for r in range(4)] for name in cases}
    for name, ranks in results.items():
        assert all(rank == ranks[0] for rank in ranks), name
        compare(ranks[0], **cases[name])
        assert read_validation(tmp_path / name) == [{"step": 1, **ranks[0]["json"]}]
    recalls = {name: [results[name][0]["scalars"][f"recall_{n}x"] for n in (1, 2, 4)] for name in ("rope", "dropped")}
    assert min(recalls["rope"]) > 0.8 and max(recalls["dropped"]) < 0.1
    assert max(results["negative"][0]["layers"]["attention_logit_max"]) < 0


def compare(results: dict[str, Any], case: dict[str, Any], norms: dict[str, torch.Tensor], model: Any) -> None:
    """A rank's numbers against transformers' model on all rows at once, and after one update by torch's AdamW."""
    config, reference = RecalibrationConfig.model_validate(case["config"]), Reference(model)
    folder, scalars = Path(case["shards"]), results["scalars"]
    shard_set, cache = ShardSet.load(folder), Path(case["out"]) / "row-index"
    rows = {n: held_out_rows(config, shard_set, folder, n, cache) for n in config.validation_lengths}
    batches = {n: whole(rows[n], list(range(len(rows[n])))) for n in rows}
    with torch.no_grad():
        for n, batch in batches.items():
            name = "validation_loss" if n == 1 else f"validation_loss_{n}x"
            assert scalars[name] == pytest.approx(reference.mean(batch).item(), abs=2e-5)
        longest = max(rows)
        losses, counted = reference.losses(batches[longest]), batches[longest].get("counted")
        by_position = position_sums(losses, counted)
        (length, parts), *others = results["json"]["by_position"].items()
        assert (int(length), others) == (ROW * longest, [])
        assert parts == pytest.approx((by_position[0] / by_position[1]).tolist(), abs=5e-5)
        for n in rows if config.recall_samples else ():
            probes = recall.recall_rows(rows[n], samples=5, eos_id=EOS, seed=0)
            assert scalars[f"recall_{n}x"] == pytest.approx(reference.recall(probes))
        reference.losses(whole(rows[1], [0, 1]))
        assert results["layers"]["attention_logit_max"] == pytest.approx(reference.maxima, rel=1e-5, abs=1e-5)
    compare_norms(results["layers"], norms)
    if norms:
        update = whole(rows[1], [0, 2, 1, 3, 4, 0, 5, 1])
        compare_update(results["after_update"]["validation_loss"], reference, norms, update, batches[1])


def compare_norms(layers: dict[str, list[float]], norms: dict[str, torch.Tensor]) -> None:
    expected: dict[str, list[float]] = {"attention_logit_max": layers["attention_logit_max"]}
    for name, weight in norms.items():
        part = name.split("_norm")[0][-1]
        for kind, value in (("mean", weight.mean()), ("min", weight.min()), ("max", weight.max())):
            expected.setdefault(f"{part}_norm_weight_{kind}", []).append(value.item())
    assert {name: pytest.approx(values) for name, values in expected.items()} == layers


def compare_update(
    loss: float, reference: Reference, norms: dict[str, torch.Tensor], update: dict, held_out: dict
) -> None:
    """Held-out loss after one update of torch's AdamW: nothing that was measured has changed the training."""
    parameters = [*reference.model.parameters(), *(norm.requires_grad_() for norm in norms.values())]
    optimizer = torch.optim.AdamW(parameters, lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    reference.mean(update).backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    with torch.no_grad():
        assert loss == pytest.approx(reference.mean(held_out).item(), abs=2e-5)


def test_logits_of_a_pass_are_bounded(
    settings: Callable[..., RecalibrationConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 2 GiB of this rank's words, in 8 bytes each, and never less than a row."""
    monkeypatch.setattr("megatron.core.parallel_state.get_tensor_model_parallel_world_size", lambda: 2)
    config = settings(micro_batch=64, batch=128)
    for vocab, length, multiple, rows in (
        (96, 32, 1, 64),
        (96, 32, 4, 16),
        (49152, 2048, 1, 5),
        (151936, 2048, 1, 1),
        (151936, 2048, 8, 1),
    ):
        assert rows_at_once(config, SimpleNamespace(vocab_size=vocab, row_length=length), multiple) == rows
