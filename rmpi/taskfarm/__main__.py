"""``python -m rmpi.taskfarm``: workers from the shell, and scripts whose workers are the ranks of a job."""

from rmpi.taskfarm.command import main

if __name__ == "__main__":
    raise SystemExit(main())
