"""The training process with ZeRO 3's parameters in small sub-groups, as models of billions of weights have many."""

from pipeline.recalibration import engine, worker

PARAMETERS = 4000

if __name__ == "__main__":
    whole = engine.engine_config

    def with_small_groups(config: object) -> dict[str, object]:
        engine_settings = whole(config)
        return engine_settings | {
            "zero_optimization": engine_settings["zero_optimization"] | {"sub_group_size": PARAMETERS}
        }

    engine.engine_config = with_small_groups
    worker.main()
