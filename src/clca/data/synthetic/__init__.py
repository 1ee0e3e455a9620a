"""Synthetic leaves: cultivars that differ only in fine detail."""
