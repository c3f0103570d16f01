"""Networks, their files and the names by which they are found."""
