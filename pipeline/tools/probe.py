"""`drope probe`: the paper's theory, measured on a run's model untrained and trained, with positions and without."""

import numpy as np

from eval.held_out import open_prefixes, read_tokens
from eval.probes.run import ProbeResults, Subject, run
from foundation.files import write_text
from pipeline.errors import RecipeError
from pipeline.recipe.random_model import source_folder
from pipeline.recipe.recipe import Recipe
from pipeline.report.probe_plots import probe_plot
from pipeline.runs.manifest import Manifest
from pipeline.stages.data import validation_prefixes

_LENGTH = 128


def probe(recipe: Recipe, *, length: int | None, seed: int) -> ProbeResults:
    """Probes the source's shape untrained, the source, the source with RoPE removed, and the export where there is one.

    length: tokens of the sequences; None for 128, or the context if that is shorter. Writes probes.json, probes.csv and
    probes.svg to probes/ in the run's folder.

    Raises: RecipeError if the source has no RoPE; EvaluationError.
    """
    from eval.models import read_config
    from model_surgery.rotation import rotating_layers

    source, export = source_folder(recipe), recipe.folder / "export" / "drope"
    config = read_config(source)
    if not rotating_layers(config.to_dict()):
        raise RecipeError(f"{source}: it has no RoPE, so there is nothing to compare; probe a run of a RoPE model")
    subjects = [
        Subject(name="RoPE, untrained", folder=source, rope=True, seed=seed),
        Subject(name="NoPE, untrained", folder=source, rope=False, seed=seed),
    ]
    if recipe.model.random_seed is None:
        subjects += [
            Subject(name="RoPE", folder=source, rope=True, seed=None),
            Subject(name="RoPE removed", folder=source, rope=False, seed=None),
        ]
    if Manifest.load(recipe.folder / "export"):
        subjects.append(Subject(name="DroPE", folder=export, rope=True, seed=None))
    length = min(_LENGTH, config.max_position_embeddings) if length is None else length
    results = run(subjects, held_out(recipe, length), length=length, seed=seed)
    out_dir = recipe.folder / "probes"
    out_dir.mkdir(parents=True, exist_ok=True)
    write_text(out_dir / "probes.svg", probe_plot(results).svg)
    results.save(out_dir)
    return results


def held_out(recipe: Recipe, length: int) -> np.ndarray | None:
    """The first held-out tokens of the run's data; None where that stage is not complete."""
    if not Manifest.load(recipe.folder / "data"):
        return None
    return read_tokens(open_prefixes(validation_prefixes(recipe.folder)), length)


def summary(results: ProbeResults) -> str:
    """A line per model: the largest positional bias on a constant sequence, and how it grows with epsilon."""
    lines = []
    for subject in results.subjects:
        biases = [
            max(layer.bias.values())
            for layer in results.layers
            if (layer.subject, layer.sequence, layer.epsilon) == (subject.name, "constant", 0.0)
        ]
        slopes = [
            slope.value
            for slope in results.slopes
            if slope.subject == subject.name and slope.measure.startswith("bias")
        ]
        lines.append(
            f"{subject.name:<16} constant sequence: positional bias at most {max(biases):.1e}; "
            f"~ epsilon^p, p = {min(slopes):.2f} to {max(slopes):.2f}"
        )
    return "\n".join(lines)
