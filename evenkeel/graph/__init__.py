"""Reading a model into a `LayerGraph`, and what can be asked of one."""
