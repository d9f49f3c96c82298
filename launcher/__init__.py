"""The command ``rmpi-run``: options, signals, what the terminal shows, and the exit code."""
