"""Tests of sweep/doctor."""
