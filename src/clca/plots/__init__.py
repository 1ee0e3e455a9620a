"""Pictures drawn with matplotlib from plain values."""
