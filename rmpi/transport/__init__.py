"""Frames between processes: one endpoint per place, one link per pair and medium."""
