"""Projects through a real QuPath (paquo): the only place that knows Java."""
