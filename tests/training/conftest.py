"""Fixtures of tiny images and runs."""

from tiny_runs import draw_images, images, make_config

__all__ = ["draw_images", "images", "make_config"]
