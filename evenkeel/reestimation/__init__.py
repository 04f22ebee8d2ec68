"""Norm statistics replaced by measured ones: `reestimate_`, `reestimate_domains_`, `adapted`."""
