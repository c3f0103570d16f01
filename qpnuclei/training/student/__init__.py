"""Training of the student on its own pseudo-labels."""
