"""`clca data check`: classes, counts, unreadable and duplicate images."""
