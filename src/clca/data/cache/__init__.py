"""A cache of resized images on disk."""
