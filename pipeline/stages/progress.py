"""How far a stage has come, from what lies in its folder: a number that grows whenever work becomes safe."""

from pathlib import Path

from pipeline.recalibration.checkpoints.folders import complete, step_of


def progress(stage: str, folder: Path) -> int:
    """Step of the newest checkpoint of a training; pieces of the data; units and bytes of answers of an evaluation.

    0 for a stage that begins anew when it is cut off.
    """
    if stage in ("recalibration", "control"):
        done = complete(folder / "checkpoints")
        return step_of(done[-1]) if done else 0
    if stage == "data":
        return sum(1 for _ in (folder / "pieces").glob("*.json"))
    if stage == "evaluation":
        answers = sum(path.stat().st_size for path in (folder / "units").glob("*.answers"))
        return sum(1 for _ in (folder / "units").glob("*.json")) + answers
    return 0
