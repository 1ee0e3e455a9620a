"""Checks of a data set (`clca data check`): classes, counts, unreadable and duplicate images."""
