"""`from evenkeel.hf import ReestimationCallback`: the callbacks for Hugging Face's Trainer."""

from evenkeel.integrations.hf import (
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
