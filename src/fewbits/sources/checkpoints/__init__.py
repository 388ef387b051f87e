"""State dicts of other tools, read without running any code in them."""
