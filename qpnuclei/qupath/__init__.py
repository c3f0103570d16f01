"""All that knows QuPath: projects, images, annotations, detections, GeoJSON."""
