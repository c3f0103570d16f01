"""System services: files, threads, memory, time."""
