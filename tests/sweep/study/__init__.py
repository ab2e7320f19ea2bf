"""Tests of sweep/study."""
