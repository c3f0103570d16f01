"""The networks, their checkpoints, and the segmenter that runs them."""
