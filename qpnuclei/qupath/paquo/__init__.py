"""Projects through an installed QuPath (paquo): the only package that uses Java."""
