"""`from evenkeel.hf import ReestimationCallback`: the callback for Hugging Face's Trainer."""

from evenkeel.integrations.hf import ReestimationCallback

__all__ = ["ReestimationCallback"]
