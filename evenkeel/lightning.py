"""`from evenkeel.lightning import ReestimationCallback`: the callback for Lightning."""

from evenkeel.integrations.lightning import ReestimationCallback

__all__ = ["ReestimationCallback"]
