"""`clca demo`: four small models on synthetic leaves."""
