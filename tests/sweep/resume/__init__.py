"""Tests of sweep/resume."""
