"""Where finished weights are kept, in memory or in folders, and what tells runs apart."""
