"""Tests of core/train."""
