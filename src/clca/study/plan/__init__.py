"""What a study will run: its file, the runs it expands to, their identity and cost."""
