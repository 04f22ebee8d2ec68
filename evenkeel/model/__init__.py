"""A `torch.nn.Module` as it is given: its state restored, its wrappers taken off, its norms, flags and batches."""
