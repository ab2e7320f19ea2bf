"""Tests of core/kolors."""
