"""One engine behind every page and every server, and the door that user files pass first."""
