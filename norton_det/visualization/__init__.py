"""Images and videos: reading, drawing detections, writing."""
