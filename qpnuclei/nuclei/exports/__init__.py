"""Files that take nuclei to other programs, one module for each kind."""
