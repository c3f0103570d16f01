"""From pixels to instances: engines, the network and its maps, the watershed that splits nuclei."""
