"""What reaches norm layers, measured exactly over batches, and what these store."""
