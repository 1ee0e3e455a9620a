"""Report of a study."""
