"""What several tests share, and tools that are run by hand."""
