"""The parts of `pipeline.decode`: crops, reading images, resizing them quickly."""
