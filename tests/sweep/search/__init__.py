"""Tests of sweep/search."""
