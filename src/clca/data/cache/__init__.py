"""Resized images kept on disk."""
