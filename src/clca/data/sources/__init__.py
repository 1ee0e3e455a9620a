"""Readers of data sets: folders, CSV files, the Ultra-FGVC sets."""
