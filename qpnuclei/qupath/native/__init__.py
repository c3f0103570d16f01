"""QuPath projects without QuPath and without a JVM."""
