"""What verbs do once their options are known."""
