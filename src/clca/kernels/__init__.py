"""Processor-specific ways to compute what the models compute, and the one place that decides when they run."""
