"""What a run will take on this machine, said before it begins: a few real steps are timed, the rest is arithmetic."""
