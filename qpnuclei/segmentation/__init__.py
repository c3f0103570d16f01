"""From attention to instances: post-processing, polygons, tile plan, stitching."""
