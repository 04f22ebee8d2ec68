"""`from evenkeel.lightning import ReestimationCallback`: the callbacks for Lightning."""

from evenkeel.integrations.lightning import (
    DropoutScheduleCallback,
    FreezeNormsCallback,
    ReestimationCallback,
    ShiftLogCallback,
)

__all__ = [
    "DropoutScheduleCallback",
    "FreezeNormsCallback",
    "ReestimationCallback",
    "ShiftLogCallback",
]
