"""Tests of sweep/process."""
