"""The pages and tables about a study's images."""
