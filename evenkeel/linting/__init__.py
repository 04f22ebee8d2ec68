"""Rules on where dropout belongs: `lint` and `explain`."""
