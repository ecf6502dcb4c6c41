"""A run's folder with small files, written by the classes that write the real ones."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval.config import EvaluationConfig
from eval.results import Curve, Results, SampleValues, Score
from eval.tasks.longbench import METRICS
from eval.units import rows_of
from pipeline.recalibration.metrics.recorder import MetricsRecorder
from pipeline.recalibration.metrics.validation_result import ValidationResult, write_validation
from pipeline.recipe.recipe import Recipe, write_recipe
from pipeline.report.page import write_report
from pipeline.runs.manifest import Manifest, describe_outputs
from pipeline.stages.order import REPORT, STAGES

CONTEXT = 64
STARTED = datetime(2026, 3, 1, 9, 0, tzinfo=UTC)
RECALL = {
    "rope": (0.97, 0.29, 0.09, 0.04),
    "pi": (0.97, 0.21, 0.05, 0.06),
    "ntk": (0.97, 0.37, 0.10, 0.07),
    "yarn": (0.97, 0.40, 0.40, 0.10),
    "drope": (0.955, 0.90, 0.81, 0.12),
    "drope_scaled": (0.955, 0.91, 0.83, 0.17),
    "control": (0.985, 0.31, 0.08, 0.03),
}
LOSS = {
    "rope": (2.104, 2.61, 3.42, 4.31),
    "pi": (2.104, 2.58, 2.97, 3.26),
    "ntk": (2.104, 2.49, 2.88, 3.12),
    "yarn": (2.104, 2.37, 2.51, 2.74),
    "drope": (2.163, 2.19, 2.24, 2.31),
    "drope_scaled": (2.163, 2.18, 2.21, 2.25),
    "control": (2.061, 2.55, 3.37, 4.18),
}
ALL = tuple(RECALL)
NEEDLE_TASKS = ("niah_single_1", "niah_multikey_2", "niah_multivalue", "niah_depth", "lost_in_the_middle")
DEPTHS = 5
LIMITS = {"multifieldqa_en": 40, "musique": 30, "gov_report": 20, "lcc": 10}
PUBLISHED = """model,source,variant,task,context_factor,value
facts-600K,a paper,drope,recall,4,0.75
other-1B,a paper,drope,recall,4,0.10
facts-600k,a paper,yarn,recall,2,0.5
facts-600k,a blog,rope,loss,1,2.2
facts-600k,a blog,rope,hotpotqa,4,0.3
"""


@dataclass
class Run:
    """What a test asks for; `build` writes it."""

    folder: Path
    variants: tuple[str, ...] = ("rope", "pi", "ntk", "yarn", "drope")
    lengths: tuple[int, ...] = (1, 2, 4, 8)
    recall: bool = True
    control: bool = False
    harness: bool = False
    needles: bool = False
    longbench: bool = False
    published: str = ""
    curves: bool = True
    validation_lengths: tuple[int, ...] = (1,)
    probe: bool = False
    skips: bool = False
    stages: tuple[str, ...] = ("data", "surgery", "recalibration", "control", "export", "evaluation")
    report: dict[str, str] = field(default_factory=dict)
    steps: int = 60
    samples: int = 200
    change: Callable[[list[Score]], list[Score]] = list

    def build(self) -> Recipe:
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.published:
            (self.folder / "published.csv").write_text(self.published, encoding="utf-8")
            self.report = self.report | {"published": str(self.folder / "published.csv")}
        recipe = self.recipe()
        write_recipe(recipe, self.folder / "recipe.yaml")
        needs = {stage.name: stage.needs(recipe) for stage in STAGES}
        digests: dict[str, str] = {}
        for place, name in enumerate(stage for stage in self.stages if stage != "control" or self.control):
            folder = self.folder / name
            folder.mkdir()
            facts = getattr(self, f"write_{name}")(folder, recipe)
            manifest = Manifest(
                stage=name,
                started=STARTED + timedelta(minutes=3 * place),
                finished=STARTED + timedelta(minutes=3 * place, seconds=20.5 + 60 * place),
                config=recipe.model_dump(mode="json").get(name, {}),
                inputs={"model": "ab" * 32} | {source: digests[source] for source in needs[name] if source in digests},
                outputs=describe_outputs(folder, [path for path in folder.iterdir() if path.is_file()]),
                facts=facts,
                environment={"python": "3.11.9", "torch": "2.13.0", "git": "0123456789ab", "host": f"node{place // 4}"},
            )
            manifest.save(folder)
            digests[name] = manifest.digest
        return recipe

    def recipe(self) -> Recipe:
        recall = {
            "samples": self.samples,
            "fact": "{key} {value} ",
            "question": "{key}",
            "keys": ["a"],
            "values": ["b"],
        }
        evaluation: dict[str, Any] = {
            "variants": self.variants,
            "context_factors": self.lengths,
            "softmax_scale_c": 0.2,
            "recall": recall if self.recall else None,
            "harness": [{"name": "arc_easy", "path": "arc.jsonl"}, {"name": "winogrande", "path": "w.jsonl"}]
            if self.harness
            else [],
        }
        if self.needles:
            niah = {"tasks": NEEDLE_TASKS, "samples": 40, "context_factors": (2, 4), "depths": DEPTHS}
            evaluation |= {"niah": niah}
        if self.longbench:
            evaluation |= {"longbench": {"factor": 4}}
        return Recipe.model_validate(
            {
                "name": self.folder.name,
                "runs_dir": str(self.folder.parent),
                "model": {"path": "models/facts-600k"},
                "data": {"sources": [{"path": "facts.parquet"}], "row_length": CONTEXT},
                "surgery": {"tensor_parallel": 2},
                "recalibration": {
                    "tokens": self.steps * 512,
                    "batch": 8,
                    "lr": 1e-3,
                    "precision": "fp32",
                    "control": self.control,
                    "validation_lengths": self.validation_lengths,
                    "recall_samples": 8 if self.probe else 0,
                },
                "evaluation": evaluation,
                "report": self.report,
            }
        )

    def write_data(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        (folder / "train.bin").write_bytes(bytes(4096))
        return {"train": {"documents": 400, "tokens": 2048}, "empty_documents": 0}

    def write_surgery(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        (folder / "layout.json").write_text("{}", encoding="utf-8")
        comparisons = {
            "with RoPE": {"max_difference": 3.1e-6, "limit": 1.2e-4, "top1_agreement": 1.0},
            "without PE": {"max_difference": 2.4e-6, "limit": 1.2e-4, "top1_agreement": 1.0},
        }
        verification = {"comparisons": comparisons, "tokens": 128}
        return {"parameters": 655_872, "layout_digest": "cd" * 32, "verification": verification}

    def write_recalibration(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        """Losses fall to `end`; with `skips` the updates of steps 20 and 21 were not made, one of a loss of NaN."""
        start, end = (4.6, 2.16) if folder.name == "recalibration" else (2.1, 2.06)
        with MetricsRecorder(folder, done=0, steps=self.steps, description=folder.name) as metrics:
            metrics.write(0, self.validate(folder, 0, start))
            for step in range(1, self.steps + 1):
                value = end + (start - end) * 0.93**step
                numbers = {"loss": value + 0.02 * (-1) ** step, "lr": 1e-3, "grad_norm": 0.8, "tokens": step * 512}
                numbers |= {"step_seconds": 0.05, "tokens_per_second": 9000.0, "attention_logit_max": [7.0, 9.5]}
                if self.skips and step in (20, 21):
                    loss, norm = (float("nan"), float("nan")) if step == 20 else (95.0, 812.0)
                    numbers |= {"loss": loss, "grad_norm": norm, "skipped": "not finite"}
                if step % max(1, self.steps // 6) == 0 or step == self.steps:
                    numbers |= self.validate(folder, step, value)
                metrics.write(step, numbers)
        facts = {"steps": self.steps, "tokens": self.steps * 512, "processes": 2, "final_loss": end}
        return facts | {"updates_skipped": 2, "rollbacks": 1} if self.skips else facts

    def validate(self, folder: Path, step: int, loss: float) -> dict[str, float]:
        """One validation: longer rows are worse for the control, and recall grows with the steps."""
        worse = 0.05 if folder.name == "recalibration" else 0.6
        longest = max(self.validation_lengths)
        result = ValidationResult(
            losses={n: loss + worse * (n - 1) for n in self.validation_lengths},
            recalls={n: step / (step + 20 * n) for n in self.validation_lengths} if self.probe else {},
            longest=longest * CONTEXT,
            by_position=[loss + worse * part * longest / 16 for part in range(15)] + [float("nan")],
        )
        write_validation(folder, step, result)
        return result.scalars()

    write_control = write_recalibration

    def write_export(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        (folder / "model.safetensors").write_bytes(bytes(2_500_000))
        facts = {
            "dtype": "float32",
            "parameters": 655_872,
            "probe_tokens": 256,
            "loss_trained": 2.1634,
            "loss_exported": 2.1634,
            "mean_difference": 1.7e-7,
            "max_difference": 1.2e-6,
            "limit": 1e-4,
        }
        return {"drope": facts} | ({"control": facts} if self.control else {})

    def write_evaluation(self, folder: Path, recipe: Recipe) -> dict[str, Any]:
        results = self.results(recipe.evaluation)
        results.save(folder)
        return {"scores": len(results.scores), "seconds": results.seconds}

    def results(self, config: EvaluationConfig) -> Results:
        scores = [self.score(v, "loss", factor) for v in config.variants for factor in config.context_factors]
        if self.recall:
            scores += [self.score(v, "recall", factor) for v in config.variants for factor in config.context_factors]
        scores += [
            self.score(variant, task.name, 1, metric, place)
            for task in config.harness
            for place, variant in enumerate(config.variants)
            for metric in (("acc", "acc_norm") if task.name == "arc_easy" else ("acc",))
        ]
        values = []
        for family, name, factors in rows_of(config):
            if family in ("niah", "longbench"):
                made = [self.sampled(v, family, name, factor) for v in config.variants for factor in factors]
                scores += [score for score, _ in made]
                values += [values for _, values in made]
        length = config.context_factors[-1] * CONTEXT
        edges = tuple(range(0, length + 1, length // 32))
        curves = [
            Curve(
                variant=variant,
                context_factor=config.context_factors[-1],
                length=length,
                edges=edges,
                loss=tuple(LOSS[variant][0] + 0.05 * bucket * (LOSS[variant][-1] - 2) / 4 for bucket in range(32)),
            )
            for variant in config.variants
        ]
        return Results(
            source="models/facts-600k",
            training_length=CONTEXT,
            models={"source": "ab" * 32},
            tokenizer_digest="ef" * 32,
            config=config,
            scores=tuple(self.change(scores)),
            values=tuple(values),
            curves=tuple(curves) if self.curves else (),
            chance={"recall": 0.03125} if self.recall else {},
            environment={"python": "3.11.9", "device": "cpu", "threads": "2"},
            seconds=41.5,
        )

    def sampled(self, variant: str, family: str, task: str, factor: int) -> tuple[Score, SampleValues]:
        """Drawn with the variant's share of recall; what samples have in common is the same for every variant."""
        share = RECALL[variant][(1, 2, 4, 8).index(factor)]
        drawn = np.random.default_rng([len(task), factor])
        n = 40 if family == "niah" else LIMITS[task]
        hard = drawn.random(n)
        depths: tuple[float, ...] = ()
        if task in ("niah_depth", "lost_in_the_middle"):
            depths = tuple(index % DEPTHS / (DEPTHS - 1) for index in range(n))
        elif task == "niah_single_1":
            depths = tuple(drawn.random(n))
        outcome = tuple((hard < share).astype(float)) if family == "niah" else tuple(share * hard)
        place = {"variant": variant, "task": task, "context_factor": factor}
        place["metric"] = "string_match" if family == "niah" else METRICS[task]
        error = float(np.std(outcome, ddof=1) / n**0.5)
        length, mean = factor * CONTEXT, float(np.mean(outcome))
        score = Score(**place, length=length, value=mean, stderr=error, samples=n, seconds=0.25)
        return score, SampleValues(**place, values=outcome, depths=depths)

    def score(self, variant: str, task: str, factor: int, metric: str | None = None, place: int = 0) -> Score:
        column = (1, 2, 4, 8).index(factor)
        if task == "loss":
            metric, value, stderr, samples = (
                "nats_per_token",
                LOSS[variant][column],
                0.0123 * factor**0.5,
                1024 // factor,
            )
        elif task == "recall":
            value, samples = RECALL[variant][column], self.samples
            metric, stderr = "exact_match", (value * (1 - value) / (samples - 1)) ** 0.5
        else:
            value, samples = 0.31 + 0.013 * place, 150
            stderr = (value * (1 - value) / (samples - 1)) ** 0.5
        return Score(
            variant=variant,
            task=task,
            metric=metric,
            context_factor=factor,
            length=factor * CONTEXT if task in ("loss", "recall") else None,
            value=value,
            stderr=stderr,
            samples=samples,
            seconds=0.5,
        )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "runs" / "facts")


def with_everything(run: Run) -> Run:
    """A run with everything that a run can have."""
    run.variants, run.control, run.harness = ALL, True, True
    run.validation_lengths, run.probe, run.skips = (1, 2, 4), True, True
    run.needles = run.longbench = True
    run.published = PUBLISHED
    run.report = {"title": "DroPE on facts", "notes": "A small model.\nSecond line."}
    return run


@pytest.fixture
def full(run: Run) -> Run:
    return with_everything(run)


@pytest.fixture(scope="session")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with everything and its report, for tests that only read."""
    run = with_everything(Run(tmp_path_factory.mktemp("reported") / "runs" / "facts"))
    write_report(run.build(), run.folder, run.folder / "report", REPORT.reported)
    return run
