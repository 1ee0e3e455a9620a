"""The commands of `clca`, one file each: `run(argv)` parses, calls, prints and returns the exit code.

Everything heavy is imported inside `run`, so that no command waits for what another one needs.
"""
