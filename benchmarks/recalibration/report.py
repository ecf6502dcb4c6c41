"""The measurements as a table in Markdown, and what they were measured on."""

from collections.abc import Sequence
from importlib.metadata import version

from benchmarks.data_prep import machine
from benchmarks.recalibration.cases import Result

HEAD = (
    *("model", "row", "ranks", "precision", "recompute", "layers", "tokens/s", "Trainer", "ratio", "pairs"),
    *("MiB", "Trainer", "ratio", "data wait", "loss difference", "others' cores"),
)
LIBRARIES = ("torch", "deepspeed", "megatron-core", "transformers", "accelerate")


def page(results: Sequence[Result], differing: Sequence[str], repeat: int) -> str:
    facts = {key: value for key, value in machine.describe({}).items() if key != "datatrove's environment"}
    facts["libraries"] = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(row(result)) + " |" for result in results]
    lines += ["", *(f"- {key}: {value}" for key, value in facts.items())]
    lines += [f"- fastest of {repeat} runs of each way, turn by turn; largest memory of all; others' cores at worst"]
    lines += [f"- all runs, tokens/s, {result.case.label}: {_all(result)}" for result in results]
    return "\n".join([*lines, "", *(differing or ["Both ways train the same: losses of all steps agree."])])


def row(result: Result) -> list[str]:
    case, best = result.case, {way: result.best(way).tokens_per_second for way in ("ours", "trainer")}
    peak = {way: result.peak(way) for way in best}
    pairs = result.pair_ratios("ours", "trainer")
    share = result.best("ours").data_share
    return [
        *(case.model, str(case.length), str(case.ranks), case.precision, case.recompute, case.layers),
        *(f"{best['ours']:,.0f}", f"{best['trainer']:,.0f}", f"{best['ours'] / best['trainer']:.2f}x"),
        f"{min(pairs):.2f} to {max(pairs):.2f}",
        *(f"{peak['ours'] / 2**20:,.0f}", f"{peak['trainer'] / 2**20:,.0f}", f"{peak['ours'] / peak['trainer']:.2f}x"),
        "not told" if share is None else f"{share:.2%}",
        f"{result.loss_difference('ours', 'trainer'):.1e}",
        f"{max(run.others_cores for runs in result.runs.values() for run in runs):.2f}",
    ]


def _all(result: Result) -> str:
    return ", ".join(f"{way} {[round(run.tokens_per_second) for run in runs]}" for way, runs in result.runs.items())
