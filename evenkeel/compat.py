"""`from evenkeel.compat import update_bn`: `reestimate_` by the signature of torch's `update_bn`."""

from evenkeel.integrations.compat import update_bn

__all__ = ["update_bn"]
