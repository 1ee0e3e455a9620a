"""Runs of a study in progress: driver, executors, claims."""
