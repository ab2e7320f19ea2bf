"""Tests of core/story."""
