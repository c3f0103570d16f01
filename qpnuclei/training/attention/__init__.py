"""Training of the paper's attention network."""
