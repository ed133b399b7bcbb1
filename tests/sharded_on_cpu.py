"""`python -m tests.fixed_points` with trainer.parallel=fsdp on CPUs, where Accelerate has none."""

from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType

from eomt_exp import cli
from eomt_exp.engine import device
from tests.planted import fix_points


class Sharding(Accelerator):
    """Takes the processes for those of GPUs where there is a plugin."""

    def __init__(self, fsdp_plugin: Any = None, **settings: Any) -> None:
        super().__init__(**settings)
        if fsdp_plugin is not None:
            for state in (PartialState, AcceleratorState):
                state._shared_state["distributed_type"] = DistributedType.FSDP
            AcceleratorState._shared_state["fsdp_plugin"] = fsdp_plugin


if __name__ == "__main__":
    patch = pytest.MonkeyPatch()
    fix_points(patch)
    patch.setattr(device, "check_device", lambda settings: None)
    patch.setattr("eomt_exp.tasks.train.check_device", lambda settings: None)
    patch.setattr(device, "Accelerator", Sharding)
    cli.main()
