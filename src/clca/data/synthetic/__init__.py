"""Leaves drawn by a program: cultivars that differ by almost nothing."""
