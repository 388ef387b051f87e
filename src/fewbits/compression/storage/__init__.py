"""Where finished weights are kept: in memory, or in folders that a compression can resume from."""
