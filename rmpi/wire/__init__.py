"""Values ⇄ frames ⇄ bytes. Nothing in this package reads a clock, opens a socket or starts a thread."""
