"""What is asked of the machine: files, paths, processes, signals, time."""
