"""HTML pages of results, each one file with its images inside."""
