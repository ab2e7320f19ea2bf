"""Tests of sweep/plan."""
