"""Networks, model files, and models by name."""
