"""The plan of a study: its file, the runs that it expands to, their identity and their cost."""
