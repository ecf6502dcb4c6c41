"""Which of a recipe's assets are on this machine; no server is asked."""

from dataclasses import dataclass
from typing import Any

from eval.tasks.hub import offline
from pipeline.recipe.assets import Asset, assets_of
from pipeline.recipe.hub_errors import hub_error
from pipeline.recipe.recipe import Recipe


@dataclass(frozen=True)
class AssetState:
    """An asset and whether it is on this machine. lack: why it is not, None if it is."""

    asset: Asset
    lack: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        asset = self.asset
        return {
            "kind": asset.kind,
            "name": asset.name,
            "where": asset.where,
            "repository": asset.repository,
            "optional": asset.optional,
            "remote": asset.remote,
            "there": self.lack is None,
            "lack": self.lack,
        }

    def as_text(self) -> str:
        """One line, and a second one where fetching may not mend it: a path, or a revision that is not pinned."""
        state = "missing" if self.lack else "remote" if self.asset.remote else "there"
        needs_reason = self.lack is not None and (self.asset.bring is None or self.asset.kind == "data")
        return f"{state:<8} {self.asset}" + (f"\n         {self.lack}" if needs_reason else "")


def asset_states(recipe: Recipe) -> list[AssetState]:
    """All assets of the recipe, in the order of its stages."""
    return [AssetState(asset, lack_of(asset)) for asset in assets_of(recipe)]


def lack_of(asset: Asset) -> str | None:
    """Why the asset is not on this machine; None if it is."""
    try:
        find_offline(asset)
    except Exception as error:  # what the Hub's clients raise has no base class in common
        return reason_of(asset, hub_error(str(asset), error))
    return None


def find_offline(asset: Asset) -> None:
    """Looks for it as a machine without a network does: on the disk, not in what this process has heard from the Hub.

    Raises: what `asset.find` raises.
    """
    from data_prep.reading.hub import forget

    forget()
    with offline():
        asset.find()
    forget()


def reason_of(asset: Asset, failure: Exception) -> str:
    """What an error says, without the name of the asset, which stands before it."""
    text = str(failure)
    for name in (asset, f"{asset.where} = {asset.name}", f"source {asset.name}", f"source hub:{asset.name}"):
        text = text.removeprefix(f"{name}: ")
    return text
