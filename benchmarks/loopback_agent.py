"""Stands in for ssh: ``agent [-l user] host command`` runs the command here. Makes two nodes on one machine."""

import os
import sys

os.execvp("sh", ["sh", "-c", sys.argv[-1]])
