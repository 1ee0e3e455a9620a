"""Studies: many runs from one file, on one machine or many, and what they say."""
