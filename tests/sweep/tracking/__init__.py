"""Tests of sweep/tracking."""
