"""Tests of core/tiny."""
