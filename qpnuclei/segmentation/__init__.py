"""From pixels to instances: the network, its maps, the watershed that separates nuclei."""
