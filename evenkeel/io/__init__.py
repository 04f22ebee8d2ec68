"""Reading and writing: models by name, checkpoints, data sets."""
