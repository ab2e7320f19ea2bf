"""Tests of sweep/worker."""
