"""The training process with ZeRO 3's parameters in small sub-groups, as models of billions of weights have many."""

from pipeline.recalibration import engine, worker
from pipeline.recipe.recalibration import ResolvedTraining

PARAMETERS = 4000

if __name__ == "__main__":
    whole = engine.engine_config

    def with_small_groups(config: ResolvedTraining, *, parameters: int) -> dict[str, object]:
        engine_settings = whole(config, parameters=parameters)
        return engine_settings | {
            "zero_optimization": engine_settings["zero_optimization"] | {"sub_group_size": PARAMETERS}
        }

    engine.engine_config = with_small_groups
    worker.main()
