"""Learning the networks from unlabelled tissue."""
