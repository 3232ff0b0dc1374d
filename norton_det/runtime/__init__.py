"""What a process needs besides its work: process groups, seeds, signals, memory, timing, progress."""
