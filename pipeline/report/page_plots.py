"""Every plot of a run's page: its name, its drawing, its caption."""

from collections.abc import Iterator
from dataclasses import dataclass

from eval.results import Results
from pipeline.recipe.recalibration import RecalibrationConfig
from pipeline.report import depth, evaluation_plots, needles, training_plots
from pipeline.report.figures import Drawing
from pipeline.report.inputs import RunData
from pipeline.report.measures import NEEDLES

EVALUATION = (
    *("recall_by_length", "needles_by_length", "loss_by_length", "loss_by_position", "lost_in_the_middle"),
    *("needles_by_task", "depth"),
)
TRAINING = ("recalibration", "optimization", "validation_by_length", "validation_by_position", "recall_probe")
_WIDE = ("needles_by_task", "depth")


@dataclass(frozen=True)
class PagePlot:
    """A plot: its name, which its files bear, what it shows, and whether it takes the page's whole width."""

    name: str
    drawing: Drawing
    caption: str

    @property
    def wide(self) -> bool:
        return self.name in _WIDE


def with_content(plots: dict[str, tuple[Drawing | None, str]]) -> Iterator[PagePlot]:
    """The plots that there is something to draw for."""
    yield from (PagePlot(name, drawing, caption) for name, (drawing, caption) in plots.items() if drawing is not None)


def evaluation_page_plots(results: Results) -> Iterator[PagePlot]:
    """What was evaluated, drawn."""
    yield from with_content(
        {
            "recall_by_length": (
                evaluation_plots.length_plot(results, "recall", "recall"),
                "Recall of facts from the context, with one standard error, against the context length.",
            ),
            "needles_by_length": (
                evaluation_plots.length_plot(results, NEEDLES, "needles"),
                "Needles found in a haystack, mean over RULER's tasks, with one standard error, against the context "
                "length.",
            ),
            "loss_by_length": (
                evaluation_plots.length_plot(results, "loss", "loss"),
                "Loss on held-out text against the context length.",
            ),
            "loss_by_position": (
                evaluation_plots.position_plot(results, "position"),
                "Loss on held-out text along the position, at the longest evaluated length.",
            ),
            "lost_in_the_middle": (depth.middle_plot(results, "middle"), middle_caption(results)),
            "needles_by_task": (
                needles.needle_plots(results, "needle-tasks"),
                "Needles found in each of RULER's tasks, with one standard error, against the context length.",
            ),
            "depth": (depth.depth_map(results, "depth"), depth_caption(results)),
        }
    )


def depth_caption(results: Results) -> str:
    """What stands in the map's cells."""
    if depth.depth_task(results, "niah_depth") == "recall":
        return "Facts recalled in hundredths, by context length and by tenths of the depth at which the fact stands."
    return "Needles found in essays in hundredths, by context length and depth of the needle."


def middle_caption(results: Results) -> str:
    """What the curve's points are."""
    if depth.depth_task(results, "lost_in_the_middle") == "recall":
        return "Facts recalled by tenths of the position of the fact, with one standard error, at the longest length."
    return "Facts found among others by the position of the fact, with one standard error, at the longest length."


def training_page_plots(data: RunData) -> Iterator[PagePlot]:
    """How the training went, drawn; the recalibration's numbers, and the control's beside them."""
    settings, metrics = data.recipe.recalibration, data.metrics
    drop = settings.drop_at_step
    source_loss = source_loss_at_1x(data.results) if data.results is not None else None
    yield from with_content(
        {
            "recalibration": (
                training_plots.recalibration_plot(metrics, source_loss, drop, "recalibration"),
                f"Training and validation loss during recalibration, {embedding_in_words(settings)}.",
            ),
            "optimization": (
                training_plots.optimization_plot(
                    metrics.get("recalibration", []), settings.gradient_clip, "optimization"
                ),
                "Gradient norm before clipping, and the learning rate, during recalibration.",
            ),
            "validation_by_length": (
                training_plots.lengths_plot(metrics, "validation_loss", drop, "validation"),
                "Loss on held-out rows of the training length and of multiples of it, during training.",
            ),
            "validation_by_position": (
                training_plots.final_position_plot(data.positions, data.recipe.data.row_length, "validation-position"),
                "Loss on held-out rows along the position, at the end of training.",
            ),
            "recall_probe": (
                training_plots.lengths_plot(metrics, "recall", drop, "probe"),
                "Share of a repeated sequence of random tokens that the model gives a probability above 1/2.",
            ),
        }
    )


def embedding_in_words(settings: RecalibrationConfig) -> str:
    """What the trained model told positions by."""
    if settings.position_embedding == "rope":
        return "with RoPE kept"
    if settings.drop_at_step is None:
        return "with no positional embedding"
    return f"with RoPE up to step {settings.drop_at_step:,} and without positional embedding from there"


def source_loss_at_1x(results: Results) -> float | None:
    """The loss of the source as published at its training length, where it was evaluated."""
    losses = (s.value for s in results.scores if (s.task, s.variant, s.context_factor) == ("loss", "rope", 1))
    return next(losses, None)
