"""A painted slide with known nuclei: synthetic, for the demonstration, tests and benchmarks."""
