"""Tests of sweep/commands."""
