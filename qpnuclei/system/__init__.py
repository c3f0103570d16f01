"""What the program asks of the machine: files, threads, memory, time."""
