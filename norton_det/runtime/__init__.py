"""What a process needs around the work: processes, signals, memory, timing, progress."""
