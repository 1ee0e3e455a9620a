"""The model: one forward for every backbone, reduction, cache and head setting; its config, cost and files."""
