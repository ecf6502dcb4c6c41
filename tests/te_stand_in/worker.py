"""The training worker in a process where Transformer Engine seems to work."""

from pipeline.recalibration.worker import main
from tests.te_stand_in.activate import activate

if __name__ == "__main__":
    activate()
    main()
