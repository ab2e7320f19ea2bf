"""Tests of reports/submission."""
